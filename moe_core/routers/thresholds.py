"""The bias of each expert at which equally many tokens choose it: prices of a balanced assignment.

Shapes: T tokens, E experts, K top_k, W values kept of a token, R tokens touched.
Source: the dual of the balanced assignment problem, solved one expert at a time (Bertsekas 1992, auction algorithms).
"""

from __future__ import annotations

import torch
from torch import Tensor

# So many values of a token are kept beyond those that decide: what falls out of them is looked for anew.
SPARE = 4


def balancing_bias(scores_TE: Tensor, top_k: int, num_iterations: int, start_E: Tensor) -> Tensor:
    """(E,) with mean zero: added to the scores, the k best of every token fall evenly on the experts, ties aside.

    One round moves one expert after the other to the bias at which T · K / E tokens (rounded) choose it, the others'
    biases kept; it ends early when a whole round moves nothing. T · K need not be a multiple of E.
    """
    num_tokens, num_experts = scores_TE.shape
    bias_E = start_E.clone()
    if not num_tokens or top_k >= num_experts:
        return bias_E
    ranking = _Ranking(scores_TE, bias_E, top_k)
    scores_ET = scores_TE.t().contiguous()
    share = round(num_tokens * top_k / num_experts)
    for _ in range(num_iterations):
        before_E = bias_E.clone()
        for expert in range(num_experts):
            bias = _threshold(ranking.to_beat(expert) - scores_ET[expert], share)
            if bias is not None:
                bias_E[expert] = bias
                ranking.move(expert, scores_ET[expert] + bias)
        if torch.equal(before_E, bias_E):
            break
    return bias_E - bias_E.mean()


def _threshold(missing_T: Tensor, share: int) -> Tensor | None:
    """Halfway between the share-th and the next of what tokens miss to choose an expert; None where there are too few."""
    # A prior that leaves no other expert leaves nothing to beat; one that masks this expert can never be met.
    missing_T = missing_T[missing_T.isfinite()]
    if not 0 < share < missing_T.shape[0]:
        return None
    last = missing_T.kthvalue(share).values
    above_T = missing_T[missing_T > last]
    # The next one: an equal, or the least above it.
    is_equal = missing_T.shape[0] - above_T.shape[0] > share
    return (last + (last if is_equal else above_T.min())) / 2


class _Ranking:
    """Each token's best values, at least the k + 1 that decide, kept while one expert after the other moves.

    A move touches only tokens that have the expert among these, or get it there. Of one that leaves them nothing is known
    but that it is less; the token's values are searched again once fewer than k + 1 are left.
    """

    def __init__(self, scores_TE: Tensor, bias_E: Tensor, top_k: int) -> None:
        self.top_k = top_k
        self.num_kept = min(top_k + 1 + SPARE, scores_TE.shape[1])
        values_TE = scores_TE + bias_E
        # One expert's values, and one place of all tokens, lie side by side.
        self.values_ET = values_TE.t().contiguous()
        self.best_WT = values_TE.topk(self.num_kept, dim=-1).values.t().contiguous()
        self.num_known_T = torch.full_like(self.best_WT[0], self.num_kept, dtype=torch.int64)

    def to_beat(self, expert: int) -> Tensor:
        """(T,): the k-th best value of the other experts."""
        last_T, next_T = self.best_WT[self.top_k - 1], self.best_WT[self.top_k]
        return torch.where(self.values_ET[expert] >= last_T, next_T, last_T)

    def move(self, expert: int, values_T: Tensor) -> None:
        """Give an expert other values."""
        old_T = self.values_ET[expert]
        least_T = self.best_WT.gather(0, self.num_known_T[None] - 1)[0]
        touched_T = ((old_T >= least_T) | (values_T > least_T)) & (old_T != values_T)
        rows_R = torch.nonzero(touched_T)[:, 0]
        old_R, new_R, least_R = old_T[rows_R], values_T[rows_R], least_T[rows_R]
        self.values_ET[expert] = values_T
        best_WR, known_R = self.best_WT[:, rows_R], self.num_known_T[rows_R]
        leaves_R = (old_R >= least_R) & (new_R < least_R)
        # The place that changes: that of the old value, or one beyond what is known, or the last.
        free_R = known_R.clamp(max=self.num_kept - 1)
        place_R = torch.where(old_R >= least_R, (best_WR == old_R).int().argmax(0), free_R)
        entering_R = new_R.masked_fill(leaves_R, float("-inf"))
        best_WR = best_WR.scatter(0, place_R[None], entering_R[None])
        self.best_WT[:, rows_R] = best_WR.sort(dim=0, descending=True).values
        enters_R = (old_R < least_R) & (known_R < self.num_kept)
        known_R = known_R + enters_R.long() - leaves_R.long()
        self.num_known_T[rows_R] = known_R
        self._search(rows_R[known_R <= self.top_k])

    def _search(self, rows_R: Tensor) -> None:
        if rows_R.shape[0]:
            self.best_WT[:, rows_R] = self.values_ET[:, rows_R].topk(self.num_kept, dim=0).values
            self.num_known_T[rows_R] = self.num_kept
