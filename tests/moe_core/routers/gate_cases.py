"""How tests ask gates: logits that are given, and a gate's tensors drawn from a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_core.routers import GateCall, Routing, decide
from moe_core.routers.start import Words, start_gate
from moe_core.spec import MoeSpec
from moe_core.spec.gate import Gate

VOCAB = 64


def moe_of(gate: Gate, num_experts: int, top_k: int, **fields: Any) -> MoeSpec:
    """A mixture of one layer with the gate."""
    plain = {"moe_layers": (0,), "num_experts": num_experts, "top_k": top_k, "moe_intermediate_size": 8}
    return MoeSpec.parse({**plain, "gate": gate, **fields})


def tensors_of(moe: MoeSpec, width: int, seed: int = 0, std: float = 1.0) -> dict[str, Tensor]:
    """A gate's tensors, started from a seed."""
    generator = torch.Generator().manual_seed(seed)
    shapes = moe.gate_tensors(width, VOCAB)
    tensors = {t.name: torch.empty(t.shape).requires_grad_(t.learns) for t in shapes}
    embedding_VD = torch.randn(VOCAB, width, generator=generator)
    start_gate(moe, tensors, generator, std, Words(embedding_VD))
    return tensors


def ask(
    gate: Gate,
    logits: Tensor,
    top_k: int,
    *,
    norm_topk_prob: bool = True,
    tensors: dict[str, Tensor] | None = None,
    **call: Any,
) -> Routing:
    """The decision on given logits (T, E): the map is the identity, and `tensors` may replace others."""
    moe = moe_of(gate, logits.shape[1], top_k, norm_topk_prob=norm_topk_prob)
    weights = {**tensors_of(moe, logits.shape[1]), "weight": torch.eye(logits.shape[1])}
    return decide(moe, weights | (tensors or {}), GateCall(logits, top_k, norm_topk_prob, **call))
