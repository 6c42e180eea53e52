"""The truth for experts of several kinds: a loop over tokens and choices, each expert with tensors of its own.

Activations are written by their formulas here, so that a wrong one in the code that is judged shows.

Shapes: T tokens, D model width, K top_k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_core.kernels.formulas import FORMULAS
from moe_core.spec.expert_kinds import ExpertKind


def mixed_experts_reference(
    hidden_TD: Tensor,
    experts: Sequence[Mapping[str, Tensor]],
    kinds: Sequence[ExpertKind],
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
) -> Tensor:
    """Sum over the chosen experts of weight · expert(x): (T, D), one pair at a time.

    `experts` are each one's tensors by the names of `moe_core.spec.expert_kinds`. A negative id is no expert.
    """
    rows = []
    for token, ids, weights in zip(hidden_TD, expert_ids_TK.tolist(), weights_TK, strict=True):
        total_D = torch.zeros_like(token)
        for expert, weight in zip(ids, weights, strict=True):
            if expert >= 0 and kinds[expert].kind != "zero":
                total_D = total_D + weight * _one(kinds[expert], experts[expert], token)
        rows.append(total_D)
    return torch.stack(rows) if rows else torch.zeros_like(hidden_TD)


def _one(kind: ExpertKind, tensors: Mapping[str, Tensor], x_D: Tensor) -> Tensor:
    if kind.kind == "identity":
        return x_D
    if kind.kind == "constant":
        a, b = torch.softmax(tensors["mix.weight"] @ x_D, 0)
        return a * x_D + b * tensors["constant"]
    assert kind.kind in ("swiglu", "mlp")
    act = FORMULAS[kind.activation]
    up_F = tensors["w3.weight"] @ x_D + tensors.get("w3.bias", 0.0)
    inner_F = act(tensors["w1.weight"] @ x_D) * up_F if kind.kind == "swiglu" else act(up_F)
    return tensors["w2.weight"] @ inner_F + tensors.get("w2.bias", 0.0)
