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
from torch.autograd.function import FunctionCtx
from torch.nn.functional import silu

from moe_core.errors import SpecError
from moe_core.kernels.precision import widens

# Up to so many routed rows Python sorts them: a decoding step of 32 tokens with two experts each.
FEW_ROWS = 64


@dataclass(frozen=True, slots=True)
class Grouping:
    """Routed rows in expert order."""

    # (R,) token of each row.
    token_R: Tensor
    # (R,) place of each row in the flattened (T, K) choices.
    choice_R: Tensor
    # (expert, its rows) for each expert that has any; the one thing that is read on the host.
    parts: list[tuple[int, slice]]

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


def _forward(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    *,
    widen: bool = False,
    slots_E: Tensor | None = None,
) -> tuple[Tensor, Grouping, Tensor, Tensor]:
    """Output, and what backward needs: the grouping, gate and up of each row, the weight of each row.

    `widen` computes the products in float32, one expert's weights at a time.
    """
    dtype = torch.float32 if widen else hidden_TD.dtype
    rows = group_rows(expert_ids_TK, (gate_up_E2FD if slots_E is None else slots_E).shape[0]).in_slots(
        slots_E
    )
    num_rows, num_ff = rows.token_R.shape[0], down_EDF.shape[2]
    weights_R1 = weights_TK.reshape(-1)[rows.choice_R].unsqueeze(1)
    in_RD = hidden_TD.to(dtype)[rows.token_R]
    gate_up_R2F = in_RD.new_empty(num_rows, 2 * num_ff)
    out_RD = torch.empty_like(in_RD)
    for expert, part in rows.parts:
        gate_up_r2F = torch.mm(in_RD[part], gate_up_E2FD[expert].to(dtype).t(), out=gate_up_R2F[part])
        gate_rF, up_rF = gate_up_r2F.split(num_ff, dim=1)
        torch.mm(silu(gate_rF).mul_(up_rF), down_EDF[expert].to(dtype).t(), out=out_RD[part])
    out_TD = sum_choices(_wide(out_RD).mul_(weights_R1), rows, weights_TK.shape).to(hidden_TD.dtype)
    return out_TD, rows, gate_up_R2F, weights_R1


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
            hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK
        )
        ctx.save_for_backward(hidden_TD, gate_up_E2FD, down_EDF, weights_R1, gate_up_R2F)
        ctx.rows, ctx.shape_TK = rows, weights_TK.shape  # type: ignore[attr-defined]
        return out_TD

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_TD, gate_up_E2FD, down_EDF, weights_R1, gate_up_R2F = ctx.saved_tensors
        rows: Grouping = ctx.rows
        wants_x, wants_gate_up, wants_down, _, wants_weights = ctx.needs_input_grad
        num_ff = down_EDF.shape[2]
        grad_RD = grad_TD[rows.token_R]
        d_gate_up = _for_all_but_idle(gate_up_E2FD, rows) if wants_gate_up else None
        d_down = _for_all_but_idle(down_EDF, rows) if wants_down else None
        d_in_RD = torch.empty_like(grad_RD) if wants_x else None
        d_weights_R = torch.empty_like(weights_R1.squeeze(1))
        for expert, part in rows.parts:
            gate, up = gate_up_R2F[part, :num_ff], gate_up_R2F[part, num_ff:]
            gate_silu = silu(gate)
            d_act = grad_RD[part] @ down_EDF[expert]
            act = gate_silu * up
            d_weights_R[part] = torch.sum(d_act * act, dim=1, dtype=weights_R1.dtype)
            if d_down is not None:
                scaled = (grad_RD[part] * weights_R1[part]).to(act.dtype)
                torch.mm(scaled.t(), act, out=d_down[expert])
            if d_in_RD is None and d_gate_up is None:
                continue
            d_act *= weights_R1[part]
            d_both = torch.cat([torch.ops.aten.silu_backward(d_act * up, gate), d_act * gate_silu], dim=1)
            if d_gate_up is not None:
                torch.mm(d_both.t(), hidden_TD[rows.token_R[part]], out=d_gate_up[expert])
            if d_in_RD is not None:
                torch.mm(d_both, gate_up_E2FD[expert], out=d_in_RD[part])
        d_x = None if d_in_RD is None else sum_choices(d_in_RD, rows, ctx.shape_TK)
        d_weights = _to_choices(d_weights_R, rows, ctx.shape_TK).view(ctx.shape_TK) if wants_weights else None
        return d_x, d_gate_up, d_down, None, d_weights


def _for_all_but_idle(weight_E: Tensor, rows: Grouping) -> Tensor:
    """Room for a gradient: zeros for experts without rows, not yet anything for the others."""
    gradient = torch.empty_like(weight_E)
    busy = {expert for expert, _ in rows.parts}
    for expert in range(weight_E.shape[0]):
        if expert not in busy:
            gradient[expert].zero_()
    return gradient


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _to_choices(sorted_R: Tensor, rows: Grouping, shape_TK: torch.Size) -> Tensor:
    """Rows from expert order back to the order of the flattened (T, K) choices; zeros in empty places."""
    num_choices = shape_TK.numel()
    filled = sorted_R.shape[0] == num_choices
    out = (sorted_R.new_empty if filled else sorted_R.new_zeros)(num_choices, *sorted_R.shape[1:])
    return out.index_copy_(0, rows.choice_R, sorted_R)


def sum_choices(sorted_RD: Tensor, rows: Grouping, shape_TK: torch.Size) -> Tensor:
    """Rows (R, D) in expert order to (T, D), the K rows of each token added up; the same each time: threads share no sum."""
    return _to_choices(sorted_RD, rows, shape_TK).view(*shape_TK, sorted_RD.shape[1]).sum(1)
