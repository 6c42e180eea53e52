"""Every kind of gate, as tests ask it that hold for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from moe_core.routers import GateCall, Routing, decide
from moe_core.spec import GateSpec, MoeSpec
from moe_core.spec.gate import Gate
from tests.moe_core.routers.gate_cases import VOCAB, moe_of, tensors_of

WIDTH = 16
GATES: list[type[Gate]] = list(get_args(get_args(GateSpec)[0]))
KINDS = [gate.model_fields["kind"].default for gate in GATES]
# What a gate says beside its defaults, so that every tensor that it may have is there.
CHANGES: dict[str, dict[str, object]] = {
    "hash": {"weights": "learned"}, "hierarchical": {"groups_per_domain": 2}, "soft": {"slots_per_expert": 2},
    "switch": {"logit_bias": True, "jitter": 0.01},
}  # fmt: skip


def gate_of(kind: str, num_experts: int) -> Gate:
    """The gate of a kind, with levels of a hierarchy only where there are experts for them."""
    changes = {} if kind == "hierarchical" and num_experts % 2 else CHANGES.get(kind, {})
    return GATES[KINDS.index(kind)].model_validate(changes)


def mixture(kind: str, num_experts: int, top_k: int) -> MoeSpec | None:
    """A layer with the gate; with the one top_k of a gate that allows but one, None where that is not possible."""
    gate = gate_of(kind, num_experts)
    fitting = [k for k in (top_k, 1, 2) if k <= num_experts and not gate.complaint(num_experts, k)]
    return moe_of(gate, num_experts, fitting[0], norm_topk_prob=kind != "softmax_topk") if fitting else None


def asked(
    moe: MoeSpec, tensors: Mapping[str, Tensor], hidden_TD: Tensor, training: bool, **call: object
) -> Routing:
    """The decision on hidden states of two sequences; chance comes from a seed."""
    num_tokens = hidden_TD.shape[0]
    return decide(
        moe,
        tensors,
        GateCall(
            hidden_TD,
            moe.top_k,
            moe.norm_topk_prob,
            token_ids_T=torch.arange(num_tokens) * 7 % VOCAB,
            sequence_T=torch.arange(num_tokens) * 2 // max(1, num_tokens),
            training=training,
            rng=torch.Generator().manual_seed(1),
            num_experts=moe.num_experts,
            **call,  # type: ignore[arg-type]
        ),
    )


def weighed(routing: Routing) -> list[Tensor]:
    """Everything of a decision that gradients come through."""
    found = [routing.weights_TK, routing.probs_TE, *routing.losses.values()]
    return found if routing.mix is None else [*found, routing.mix.dispatch_RT, routing.mix.combine_TR]


__all__ = ["KINDS", "WIDTH", "asked", "gate_of", "mixture", "tensors_of", "weighed"]
