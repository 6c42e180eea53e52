"""Experts in plain torch: rows sorted by expert, one GEMM pair for each expert that has rows.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, R routed rows: T·K, less the places that hold
no expert (a negative id; such a place is never read, whatever its weight).
One host sync a call (how many rows each expert has); everything else is queued.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import silu

from moe_core.errors import SpecError
from moe_core.kernels.cpu import training
from moe_core.kernels.precision import widens

# Up to so many routed rows Python sorts them: a decoding step of 32 tokens with two experts each.
FEW_ROWS = 64
# On a processor torch compiles a product of bfloat16 anew for each number of rows (0.6 ms, six times an expert, layer and
# step): with numbers that come again it keeps what it compiled.
PADDING = 32


@dataclass(frozen=True, slots=True)
class Grouping:
    """Routed rows in expert order."""

    # (R,) token of each row.
    token_R: Tensor
    # (R,) place of each row in the flattened (T, K) choices; -1 for a row of padding, which counts for nothing.
    choice_R: Tensor
    # (expert, its rows) for each expert that has any; the one thing that is read on the host.
    parts: list[tuple[int, slice]]
    # Which rows are no padding, and which are, where there is any.
    real_r: Tensor | None = None
    padding_P: Tensor | None = None

    def padded(self, multiple: int) -> Grouping:
        """The same with rows of no choice behind each expert's own, to a multiple of so many."""
        ends = list(accumulate(-(-count // multiple) * multiple for count in self.counts))
        starts = [0, *ends[:-1]]
        shift = torch.tensor(
            [start - part.start for start, (_, part) in zip(starts, self.parts, strict=True)]
        )
        place_r = torch.arange(len(self.choice_R)) + shift.repeat_interleave(torch.tensor(self.counts))
        token_R = self.token_R.new_zeros(ends[-1]).index_copy_(0, place_r, self.token_R)
        choice_R = self.choice_R.new_full((ends[-1],), -1).index_copy_(0, place_r, self.choice_R)
        parts = [(e, slice(*ends)) for (e, _), *ends in zip(self.parts, starts, ends, strict=True)]
        return Grouping(token_R, choice_R, parts, place_r, (choice_R < 0).nonzero().squeeze(1))

    def rows_RD(self, x_TD: Tensor) -> Tensor:
        """The token of each row, copied; zeros in padding, so that no product there knows a token, finite or not."""
        return self._without_padding(x_TD[self.token_R])

    def weights_R1(self, weights_TK: Tensor) -> Tensor:
        """The weight of each row, (R, 1); 0 of padding."""
        return self._without_padding(weights_TK.reshape(-1)[self.choice_R]).unsqueeze(1)

    def _without_padding(self, sorted_R: Tensor) -> Tensor:
        return sorted_R if self.padding_P is None else sorted_R.index_fill_(0, self.padding_P, 0.0)

    def place_TK(self, shape_TK: torch.Size) -> Tensor:
        """Which of the sorted rows each choice has, (T, K) int64; -1 in empty places."""
        place = self.choice_R.new_full((shape_TK.numel(),), -1)
        if self.real_r is None:
            place[self.choice_R] = torch.arange(len(self.choice_R), device=place.device)
        else:
            place[self.choice_R[self.real_r]] = self.real_r
        return place.view(shape_TK)

    @property
    def counts(self) -> list[int]:
        """How many rows each of these experts has."""
        return [part.stop - part.start for _, part in self.parts]

    def in_slots(self, slots_E: Tensor | None) -> Grouping:
        """The same rows in the same order with slots_E[e] in the place of expert e; None: experts lie by their numbers."""
        if slots_E is None:
            return self
        slots: list[int] = slots_E.tolist()
        return replace(self, parts=[(slots[expert], part) for expert, part in self.parts])


def group_rows(expert_ids_TK: Tensor, num_experts: int) -> Grouping:
    """Sort the routed rows by expert, tokens in their order within each expert.

    Raises SpecError for an id of E or more.
    """
    flat_R = expert_ids_TK.reshape(-1)
    if flat_R.shape[0] <= FEW_ROWS:
        return _group_few_rows(flat_R, expert_ids_TK.shape[1], num_experts)
    # Empty places come first, as if they were one expert more.
    flat_R = flat_R.clamp(min=-1) + 1
    empty, *counts = torch.bincount(flat_R, minlength=num_experts + 1).tolist()
    _check_highest(len(counts) - 1, num_experts)
    ends = list(accumulate(counts))
    parts = [(e, slice(end - n, end)) for e, (n, end) in enumerate(zip(counts, ends, strict=True)) if n]
    choice_R = torch.argsort(flat_R, stable=True)[empty:]
    return Grouping(choice_R // expert_ids_TK.shape[1], choice_R, parts)


def _group_few_rows(flat_R: Tensor, top_k: int, num_experts: int) -> Grouping:
    """The same for a decoding step, where Python is quicker than a queue of small operations."""
    experts: list[int] = flat_R.tolist()
    filled = [choice for choice, expert in enumerate(experts) if expert >= 0]
    choices = sorted(filled, key=experts.__getitem__)
    parts, start = [], 0
    for expert, members in groupby(choices, key=experts.__getitem__):
        end = start + len(list(members))
        parts.append((expert, slice(start, end)))
        start = end
    _check_highest(parts[-1][0] if parts else -1, num_experts)
    tokens = [choice // top_k for choice in choices]
    token_R, choice_R = torch.tensor([tokens, choices], device=flat_R.device, dtype=torch.long)
    return Grouping(token_R, choice_R, parts)


def _check_highest(expert: int, num_experts: int) -> None:
    if expert >= num_experts:
        raise SpecError(f"a token is routed to expert {expert}; there are {num_experts}, numbered from 0")


def swiglu_experts_torch(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    slots_E: Tensor | None = None,
) -> Tensor:
    """The torch path for any device and dtype, with gradients for hidden, both weights and routing weights; none of weights
    in the slots of a pool."""
    leaves = (hidden_TD, gate_up_E2FD, down_EDF, weights_TK)
    if slots_E is None and torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
        out: Tensor = GroupedSwiglu.apply(*leaves[:3], expert_ids_TK, weights_TK)
        return out
    packed = (hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK)
    return _forward(*packed, widen=widens(hidden_TD), slots_E=slots_E)[0]


def _multiple_for(hidden_TD: Tensor) -> int:
    """What the rows of an expert are padded to while gradients are recorded."""
    is_compiled = hidden_TD.device.type == "cpu" and hidden_TD.dtype is torch.bfloat16
    return PADDING if is_compiled and training.supports(hidden_TD) else 1


def _forward(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    *,
    widen: bool = False,
    slots_E: Tensor | None = None,
    multiple: int = 1,
) -> tuple[Tensor, Grouping, Tensor, Tensor]:
    """Output, and what backward needs: the grouping, gate and up of each row, the weight of each row.

    `widen` computes the products in float32, one expert's weights at a time; the rows of each are padded to a `multiple`.
    """
    dtype = torch.float32 if widen else hidden_TD.dtype
    rows = group_rows(expert_ids_TK, (gate_up_E2FD if slots_E is None else slots_E).shape[0]).in_slots(
        slots_E
    )
    if multiple > 1 and rows.parts:
        rows = rows.padded(multiple)
    num_rows, num_ff = rows.token_R.shape[0], down_EDF.shape[2]
    weights_R1 = rows.weights_R1(weights_TK)
    in_RD = rows.rows_RD(hidden_TD.to(dtype))
    gate_up_R2F = in_RD.new_empty(num_rows, 2 * num_ff)
    out_RD = torch.empty_like(in_RD)
    for expert, part in rows.parts:
        gate_up_r2F = torch.mm(in_RD[part], gate_up_E2FD[expert].to(dtype).t(), out=gate_up_R2F[part])
        torch.mm(_act(gate_up_r2F), down_EDF[expert].to(dtype).t(), out=out_RD[part])
    out_TD = sum_choices(out_RD, rows, weights_TK.shape, weights_R1).to(hidden_TD.dtype)
    return out_TD, rows, gate_up_R2F, weights_R1


def _act(gate_up_r2F: Tensor) -> Tensor:
    """silu(gate) · up."""
    num_rows, num_ff = gate_up_r2F.shape[0], gate_up_r2F.shape[1] // 2
    if training.supports(gate_up_r2F):
        return training.swiglu(gate_up_r2F, gate_up_r2F.new_empty(num_rows, num_ff))
    gate_rF, up_rF = gate_up_r2F.split(num_ff, dim=1)
    return silu(gate_rF).mul_(up_rF)


class GroupedSwiglu(torch.autograd.Function):
    """Forward keeps gate and up of each row; backward never needs the experts' outputs.

    With dAct = dOut @ down, the routing weight's gradient is <dAct, act>, so outputs are not stored
    (the observation of SonicMoE, arXiv 2512.14080). Weights that are frozen cost no backward GEMM.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        expert_ids_TK: Tensor,
        weights_TK: Tensor,
    ) -> Tensor:
        out_TD, rows, gate_up_R2F, weights_R1 = _forward(
            hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK, multiple=_multiple_for(hidden_TD)
        )
        ctx.save_for_backward(hidden_TD, gate_up_E2FD, down_EDF, weights_R1, gate_up_R2F)
        ctx.rows, ctx.shape_TK = rows, weights_TK.shape  # type: ignore[attr-defined]
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_TD, gate_up_E2FD, down_EDF, weights_R1, gate_up_R2F = ctx.saved_tensors
        rows: Grouping = ctx.rows
        wants_x, wants_gate_up, wants_down, _, wants_weights = ctx.needs_input_grad
        grad_RD = rows.rows_RD(grad_TD)
        in_RD = rows.rows_RD(hidden_TD) if wants_gate_up else None
        d_gate_up = _for_all_but_idle(gate_up_E2FD, rows) if wants_gate_up else None
        d_down = _for_all_but_idle(down_EDF, rows) if wants_down else None
        d_weights_R = torch.empty_like(weights_R1.squeeze(1))
        wants_both = wants_x or wants_gate_up
        for expert, part in rows.parts:
            d_act = grad_RD[part] @ down_EDF[expert]
            both, weights_r1 = gate_up_R2F[part], weights_R1[part]
            d_both, act, d_weights_R[part] = _act_back(both, d_act, weights_r1, wants_both, wants_down)
            if d_down is not None and act is not None:
                torch.mm(grad_RD[part].t(), act, out=d_down[expert])
            if d_both is None:
                continue
            if d_gate_up is not None and in_RD is not None:
                torch.mm(d_both.t(), in_RD[part], out=d_gate_up[expert])
            if wants_x:
                # What came in has been used: the gradient that goes out takes its place.
                torch.mm(d_both, gate_up_E2FD[expert], out=grad_RD[part])
        d_x = sum_choices(grad_RD, rows, ctx.shape_TK) if wants_x else None
        d_weights = _to_choices(d_weights_R, rows, ctx.shape_TK).view(ctx.shape_TK) if wants_weights else None
        return d_x, d_gate_up, d_down, None, d_weights


def _act_back(
    both_r2F: Tensor, d_act_rF: Tensor, weights_r1: Tensor, wants_both: bool, wants_act: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradient of gate and up, weight · act where each is wanted, and the gradient of the weights (r,).

    `d_act_rF` is that of the expert's output as it is; whoever counts it `weights_r1` times multiplies here.
    """
    if training.supports(both_r2F, d_act_rF):
        d_both = torch.empty_like(both_r2F) if wants_both else None
        act = torch.empty_like(d_act_rF) if wants_act else None
        weights_r = weights_r1.reshape(-1).float()
        d_weights_r = torch.empty_like(weights_r)
        training.swiglu_back(both_r2F, d_act_rF, weights_r, d_weights_r, d_both, act)
        return d_both, act, d_weights_r
    gate, up = both_r2F.chunk(2, dim=1)
    gate_silu = silu(gate)
    act = gate_silu * up
    d_weights_r = torch.sum(d_act_rF * act, dim=1, dtype=weights_r1.dtype)
    d_act_rF = (d_act_rF * weights_r1).to(act.dtype)
    d_gate = torch.ops.aten.silu_backward(d_act_rF * up, gate)
    d_both = torch.cat([d_gate, d_act_rF * gate_silu], dim=1) if wants_both else None
    return d_both, (act * weights_r1).to(act.dtype), d_weights_r


def _for_all_but_idle(weight_E: Tensor, rows: Grouping) -> Tensor:
    """Room for a gradient: zeros for experts without rows, not yet anything for the others."""
    gradient = torch.empty_like(weight_E)
    busy = {expert for expert, _ in rows.parts}
    for expert in range(weight_E.shape[0]):
        if expert not in busy:
            gradient[expert].zero_()
    return gradient


def _to_choices(sorted_R: Tensor, rows: Grouping, shape_TK: torch.Size) -> Tensor:
    """Rows from expert order back to the order of the flattened (T, K) choices; zeros in empty places."""
    choice_r = rows.choice_R
    if rows.real_r is not None:
        sorted_R, choice_r = sorted_R[rows.real_r], choice_r[rows.real_r]
    num_choices = shape_TK.numel()
    filled = sorted_R.shape[0] == num_choices
    out = (sorted_R.new_empty if filled else sorted_R.new_zeros)(num_choices, *sorted_R.shape[1:])
    return out.index_copy_(0, choice_r, sorted_R)


def sum_choices(
    sorted_RD: Tensor, rows: Grouping, shape_TK: torch.Size, weights_R1: Tensor | None = None
) -> Tensor:
    """Rows (R, D) in expert order to (T, D), the K rows of each token added up, weighed where weights (R, 1) are given.

    The same each time: threads share no sum. Never recorded for gradients where weights are given.
    """
    if training.supports(sorted_RD) and not (torch.is_grad_enabled() and sorted_RD.requires_grad):
        weights_R = None if weights_R1 is None else weights_R1.reshape(-1).float()
        return training.combine(sorted_RD, rows.place_TK(shape_TK), weights_R)
    if weights_R1 is not None:
        sorted_RD = (sorted_RD if sorted_RD.dtype == torch.float64 else sorted_RD.float()) * weights_R1
    return _to_choices(sorted_RD, rows, shape_TK).view(*shape_TK, sorted_RD.shape[1]).sum(1)
