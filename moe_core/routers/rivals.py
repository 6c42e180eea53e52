"""Whom each expert must beat to be among the k best of shares plus bias, its own share moved and the others scaled alike.

When an expert's share moves, those of the others go from p to c·p, so that they are chosen by lines c·p + b that rise with
c. An expert that is out comes in at some c below 1, where it meets the k-th line of all; one that is in drops out at some c
above 1, where it meets the (k+1)-th. Near 1 few lines change places: those of a few experts beyond the k best are followed.

Shapes: t tokens at once, E experts, K top_k, M followed lines, the highest at c = 1 first; all float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_core.routers.logits import NEG_INF
from moe_core.routers.rivals_of_many import rivals_of_many
from moe_core.routers.shares import Shares

INF = float("inf")
# Followed lines beyond the k best, how often the k-th of them may change, and how far the others' shares are scaled: beyond
# these all contenders of a token are compared for each expert.
NUM_BEYOND, MAX_CHANGES, MAX_SCALE = 8, 12, 1e9
# What rounding may hide of two lines.
SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines c·share + bias of all experts, and which of them are followed."""

    share_tE: Tensor
    left_tE: Tensor
    """What each expert's share leaves to the others."""
    bias_E: Tensor
    at_1_tE: Tensor
    """Their heights at c = 1; -inf for masked experts."""
    ids_tM: Tensor
    heights_tM: Tensor
    top_k: int

    @classmethod
    def of(cls, shares: Shares, weights_tE: Tensor, rest_tE: Tensor, bias_E: Tensor, top_k: int) -> Lines:
        """The lines of shares; `weights_tE` and `rest_tE` are theirs."""
        total_t1 = shares.total_t1
        share_tE = weights_tE / total_t1
        at_1_tE = share_tE + bias_E
        if bool(shares.is_masked_tE.any()):
            at_1_tE = at_1_tE.masked_fill(shares.is_masked_tE, NEG_INF)
        followed = at_1_tE.topk(min(top_k + 1 + NUM_BEYOND, share_tE.shape[-1]), dim=-1)
        return cls(share_tE, rest_tE / total_t1, bias_E, at_1_tE, followed.indices, followed.values, top_k)


def rivals(
    shares: Shares, weights_tE: Tensor, rest_tE: Tensor, bias_E: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """(t, E) int64: the one to beat for each expert; and (t, E) bool: where fewer than k others are open.

    `weights_tE` and `rest_tE` are those of `shares`; top_k is below E.
    """
    lines = Lines.of(shares, weights_tE, rest_tE, bias_E, top_k)
    rival_tE, is_known_t = _of_those_out(lines)
    rival_tK, is_known_in_t = _of_those_in(lines, weights_tE, rest_tE)
    rival_tE.scatter_(-1, lines.ids_tM[:, :top_k], rival_tK)
    unrivalled_tE = torch.zeros_like(shares.is_masked_tE)
    many_t = torch.nonzero(~(is_known_t & is_known_in_t))[:, 0]
    if many_t.numel():
        log_rest_tE = shares.log_rest_tE()[many_t]
        found = rivals_of_many(shares.logits_tE[many_t], log_rest_tE, bias_E, top_k)
        rival_tE[many_t], unrivalled_tE[many_t] = found
    return rival_tE, unrivalled_tE


def _of_those_out(lines: Lines) -> tuple[Tensor, Tensor]:
    """(t, E) int64: the k-th line where each expert that is out meets it; and (t,) bool: whether this is certain."""
    kth_t1, in_tK = lines.heights_tM[:, lines.top_k - 1 : lines.top_k], lines.ids_tM[:, : lines.top_k]
    # The k-th is highest at 1: nobody meets it farther below than at this height.
    met_tE = ((lines.bias_E + 1.0 - kth_t1) / lines.left_tE).scatter_(-1, in_tK, INF)
    lowest_t1 = met_tE.amin(-1, keepdim=True).clamp(0.0, 1.0)
    low_tK = lines.heights_tM[:, : lines.top_k] - (1.0 - lowest_t1) * lines.share_tE.gather(-1, in_tK)
    # Any k lines bound the k-th from below, and no line that is not followed may come up to it.
    level_t1 = low_tK.amin(-1, keepdim=True) - SLACK * (1.0 + kth_t1.abs())
    is_known_t = kth_t1.isfinite()[:, 0]
    if lines.ids_tM.shape[-1] < lines.share_tE.shape[-1]:
        is_known_t &= (lines.heights_tM[:, -1:] < level_t1)[:, 0]
    return _followed(lines, lowest_t1, is_known_t)


def _followed(lines: Lines, lowest_t1: Tensor, is_known_t: Tensor) -> tuple[Tensor, Tensor]:
    """(t, E) int64 and (t,) bool: the same, change by change of the k-th line, from 1 down to `lowest_t1`."""
    base_tM = torch.where(lines.heights_tM == NEG_INF, -1e300, lines.bias_E[lines.ids_tM])
    slope_tM, top_k = lines.share_tE.gather(-1, lines.ids_tM), lines.top_k
    rows_t = torch.arange(base_tM.shape[0], device=base_tM.device)
    at_t1, last_t1 = torch.ones_like(lowest_t1), torch.full_like(rows_t, top_k - 1)[:, None]
    before_t1, is_done = last_t1, False
    # How many changes each expert is past, and the places of the k-th line.
    num_past_tE = torch.zeros(lines.share_tE.shape, dtype=torch.int64, device=base_tM.device)
    path_tC = last_t1.repeat(1, MAX_CHANGES + 1)
    for change in range(1, MAX_CHANGES + 1):
        slope_t1, base_t1 = slope_tM.gather(-1, last_t1), base_tM.gather(-1, last_t1)
        beyond_tM, steeper_tM = base_tM - base_t1, slope_tM - slope_t1
        # Two lines meet once.
        meets_tM = (beyond_tM / -steeper_tM).scatter_(-1, last_t1, NEG_INF).scatter_(-1, before_t1, NEG_INF)
        is_next_tM = (meets_tM <= at_t1) & (meets_tM > lowest_t1)
        next_t1, place_t1 = torch.where(is_next_tM, meets_tM, lowest_t1).max(-1, keepdim=True)
        # Between two changes as many lines are above, which is seen in the middle: rounding hides nothing there.
        num_above_t = (0.5 * (at_t1 + next_t1) * steeper_tM + beyond_tM > 0.0).sum(-1)
        is_known_t[rows_t] &= num_above_t == top_k - 1
        going_t = torch.nonzero(is_next_tM.any(-1) & is_known_t[rows_t])[:, 0]
        if is_done := not going_t.numel():
            break
        rows_t, lowest_t1, before_t1 = rows_t[going_t], lowest_t1[going_t], last_t1[going_t]
        slope_tM, base_tM, at_t1, last_t1 = (one[going_t] for one in (slope_tM, base_tM, next_t1, place_t1))
        height_t1 = at_t1 * slope_tM.gather(-1, last_t1) + base_tM.gather(-1, last_t1)
        num_past_tE[rows_t] += at_t1 * lines.left_tE[rows_t] - lines.bias_E > 1.0 - height_t1
        path_tC[rows_t, change] = last_t1[:, 0]
    if not is_done:
        is_known_t[rows_t] = False
    return lines.ids_tM.gather(-1, path_tC).gather(-1, num_past_tE), is_known_t


def _of_those_in(lines: Lines, weights_tE: Tensor, rest_tE: Tensor) -> tuple[Tensor, Tensor]:
    """(t, K) int64: the k-th of the others where each expert that is in drops behind it, and (t,) bool as before."""
    top_k, ids_tM = lines.top_k, lines.ids_tM
    in_tK, next_t1 = ids_tM[:, :top_k], lines.heights_tM[:, top_k : top_k + 1]
    left_tK, own_bias_tK = lines.left_tE.gather(-1, in_tK), lines.bias_E[in_tK]
    # The (k+1)-th only rises, and no share is below nothing.
    scale_tK = ((own_bias_tK + 1.0 - next_t1) / left_tK).minimum(left_tK.reciprocal())
    scale_t1 = scale_tK.amax(-1, keepdim=True)
    level_t1 = next_t1 - SLACK * (1.0 + next_t1.abs())
    is_known_t = ((scale_t1 < MAX_SCALE) & next_t1.isfinite())[:, 0]
    rise_t1 = scale_t1.clamp(1.0, MAX_SCALE) - 1.0
    is_near_tM = lines.heights_tM + rise_t1 * lines.share_tE.gather(-1, ids_tM) >= level_t1
    num_t = (lines.at_1_tE + rise_t1 * lines.share_tE >= level_t1).sum(-1)
    is_known_t &= num_t == is_near_tM.sum(-1)
    share_tKM = weights_tE.gather(-1, ids_tM)[:, None] / rest_tE.gather(-1, in_tK)[..., None]
    needed_tKM = (share_tKM + (lines.bias_E[ids_tM][:, None] - own_bias_tK[..., None])) / (1.0 + share_tKM)
    is_none_tKM = (ids_tM[:, None] == in_tK[..., None]) | (lines.heights_tM == NEG_INF)[:, None]
    needed_tKM = needed_tKM.masked_fill(is_none_tKM, NEG_INF)
    place_tK = needed_tKM.kthvalue(ids_tM.shape[-1] + 1 - top_k, dim=-1).indices
    return ids_tM.gather(-1, place_tK), is_known_t
