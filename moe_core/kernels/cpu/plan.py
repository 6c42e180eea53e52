"""The structures of plan.h, for ctypes: a model's weights told once, a step's tokens each time."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from moe_core.kernels.gating import Gating
from moe_core.spec import MoeSpec
from moe_core.spec.gate import Hierarchical, SigmoidGroups, TopP

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
# `turnout::ScoreKind`: of gates that score each expert by itself, and of those that choose by their logits or by a table.
_SCORES = {"softmax": 0, "sigmoid": 1, "sqrtsoftplus": 2}
_TOPK, _BY_KIND = 3, {"sparsemax": 4, "base": 5, "hash": 6}
# Tensors of a gate by the field that tells where they lie.
_TENSORS = {
    "router": "weight", "bias": "bias", "selection_bias": "selection_bias", "domain_router": "domain_weight",
    "group_router": "group_weight", "table": "table", "roots": "roots",
}  # fmt: skip
# Those that are maps, told in float32 or, all of them, in bfloat16.
_MAPS = ("weight", "domain_weight", "group_weight")
# `turnout::GatingKind`.
_KINDS = {"silu": 0, "gelu": 1, "clamped": 2, "clamped_silu": 3}


class HeadsPlan(ctypes.Structure):
    """`turnout::Heads`: query heads over paged keys and values."""

    _fields_ = (
        *((name, _POINTER) for name in ("keys", "values", "sinks")),
        *((name, _LONG) for name in ("num_heads", "num_kv", "key_dim", "value_dim", "block_tokens")),
        *((name, _LONG) for name in ("value_row", "window")),
        ("scale", _FLOAT),
    )

    @classmethod
    def of(
        cls,
        num_heads: int,
        k_NPGd: Tensor,
        v_NPGe: Tensor,
        *,
        scale: float,
        window: int | None = None,
        sinks_H: Tensor | None = None,
    ) -> HeadsPlan:
        """Of `num_heads` query heads over the blocks of a cache, whose values may be a part of its keys."""
        _, block_tokens, num_kv, key_dim = k_NPGd.shape
        return cls(
            k_NPGd.data_ptr(),
            v_NPGe.data_ptr(),
            None if sinks_H is None else sinks_H.data_ptr(),
            num_heads,
            num_kv,
            key_dim,
            v_NPGe.shape[3],
            block_tokens,
            v_NPGe.stride(1),
            window or 0,
            scale,
        )


class LatentPlan(ctypes.Structure):
    """`turnout::Latent`: the maps of latent attention beside those to queries and back; all zero for none."""

    _fields_ = (
        *((name, _POINTER) for name in ("q_down_panels", "q_norm", "kv_down_panels", "kv_norm")),
        *((name, _POINTER) for name in ("up_keys", "up_values")),
        ("q_rank", _LONG),
        ("eps", _FLOAT),
    )


def narrowed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A gate's tensors with its maps, float32 (E, D), as copies in bfloat16 where every number of theirs is exactly one.

    What checkpoints hold in bfloat16 is, and half as many bytes say it; what was tuned in float32 stays as it is.
    """
    maps = {name: tensors[name] for name in _MAPS if name in tensors}
    # The lower half of a float32 is what bfloat16 has not.
    if any(bool((map_ED.detach().view(torch.int32) & 0xFFFF).any()) for map_ED in maps.values()):
        return dict(tensors)
    return {**tensors, **{name: map_ED.detach().bfloat16() for name, map_ED in maps.items()}}


class GatePlan(ctypes.Structure):
    """`turnout::Gate`: the router of a layer and how it chooses."""

    _fields_ = (
        *((name, _POINTER) for name in _TENSORS),
        *((name, _LONG) for name in ("num_groups", "topk_group", "num_domains")),
        *((name, _INT) for name in ("scores", "two_best", "renormalise", "holds", "narrow")),
        *((name, _FLOAT) for name in ("temperature", "factor", "reach", "hold")),
    )

    @classmethod
    def of(cls, moe: MoeSpec, tensors: Mapping[str, Tensor]) -> GatePlan:
        """Of a gate that is served token by token, and its tensors, `narrowed` or not; who asks keeps these alive.

        Where the mixture has twins, `roots` (E) int64 is among them: for each expert the lowest number of its twins.
        """
        gate = moe.gate
        own = {field: tensors[name].data_ptr() for field, name in _TENSORS.items() if name in tensors}
        plan = cls(num_groups=1, topk_group=1, factor=1.0, temperature=moe.temperature_at(), **own)
        plan.narrow = "weight" in tensors and tensors["weight"].dtype is torch.bfloat16
        if moe.twins is not None and moe.twins.hold is not None:
            plan.holds, plan.hold = 1, moe.twins.hold
        if isinstance(gate, SigmoidGroups):
            plan.num_groups, plan.topk_group = gate.num_groups, gate.topk_group
            plan.scores, plan.two_best = _SCORES[gate.scores], gate.group_score == "two_best"
            plan.renormalise, plan.factor = moe.norm_topk_prob, gate.routed_scaling_factor
            return plan
        plan.scores, plan.renormalise = _BY_KIND.get(gate.kind, _TOPK), gate.sums_to_one(moe.norm_topk_prob)
        if isinstance(gate, Hierarchical):
            plan.num_groups, plan.num_domains = gate.num_groups, gate.num_domains
        if isinstance(gate, TopP):
            plan.reach = gate.p
        return plan


class GatingPlan(ctypes.Structure):
    """`turnout::Gating`: what stands between the halves of an expert, and the biases of its maps."""

    _fields_ = (
        ("kind", _INT),
        ("alpha", _FLOAT),
        ("limit", _FLOAT),
        *((name, _POINTER) for name in ("gate_up_bias", "down_bias")),
    )

    @classmethod
    def of(
        cls, gating: Gating, gate_up_bias_E2F: Tensor | None = None, down_bias_ED: Tensor | None = None
    ) -> GatingPlan:
        """Of a gating and biases in bfloat16, both or neither; who asks keeps them alive."""
        biases = (None if bias is None else bias.data_ptr() for bias in (gate_up_bias_E2F, down_bias_ED))
        return cls(_KINDS[gating.kind], gating.alpha, gating.limit, *biases)


class LayerPlan(ctypes.Structure):
    """`turnout::LayerPlan`: one layer's weights, experts (or one dense feed-forward) and paged keys and values."""

    _fields_ = (
        *((name, _POINTER) for name in ("input_norm", "qkv_panels", "o_panels")),
        *((name, _POINTER) for name in ("qkv", "qkv_bias", "q_norm", "k_norm", "head_gate", "o", "o_bias")),
        *((name, _POINTER) for name in ("mlp_norm", "cos", "sin")),
        *((name, _POINTER) for name in ("gate_up_panels", "down_panels", "gate_up", "down")),
        *((name, _POINTER) for name in ("shared_gate_up_panels", "shared_down_panels")),
        *((name, _POINTER) for name in ("shared_gate_up", "shared_down", "shared_gate")),
        ("heads", HeadsPlan),
        ("latent", LatentPlan),
        ("gate", GatePlan),
        ("gating", GatingPlan),
        ("shared_gating", GatingPlan),
        *((name, _LONG) for name in ("num_experts", "top_k", "num_ff", "shared_num_ff", "moe_index")),
        ("turning", _LONG),
        ("whole_norms", _INT),
        ("clip", _FLOAT),
    )


class ModelPlan(ctypes.Structure):
    """`turnout::ModelPlan`."""

    _fields_ = (
        *((name, _POINTER) for name in ("embedding", "embedding_panels", "norm", "head")),
        *((name, _POINTER) for name in ("head_panels", "layers")),
        *((name, _LONG) for name in ("num_layers", "width", "vocab_size")),
        *((name, _FLOAT) for name in ("eps", "norm_offset")),
        ("interleaved", _INT),
    )


class StepPlan(ctypes.Structure):
    """`turnout::StepPlan`: the new tokens of some sequences."""

    _fields_ = (
        *((name, _POINTER) for name in ("ids", "positions", "slots", "prior_row", "firsts", "lengths")),
        *((name, _POINTER) for name in ("tables", "sampled", "prior", "floor", "mine", "chosen", "logits")),
        *((name, _LONG) for name in ("num_tokens", "num_sequences", "max_blocks", "num_sampled")),
        *((name, _LONG) for name in ("prior_stride", "floor_stride", "chosen_stride")),
    )
