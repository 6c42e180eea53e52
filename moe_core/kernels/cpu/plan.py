"""The structures of plan.h, for ctypes: a model's weights told once, a step's tokens each time."""

from __future__ import annotations

import ctypes

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class LayerPlan(ctypes.Structure):
    """`turnout::LayerPlan`: one layer's weights, experts (or one dense feed-forward) and paged keys and values."""

    _fields_ = (
        *((name, _POINTER) for name in ("input_norm", "qkv_panels", "o_panels")),
        *((name, _POINTER) for name in ("qkv", "q_norm", "k_norm", "o", "mlp_norm", "router")),
        *((name, _POINTER) for name in ("gate_up_panels", "down_panels", "gate_up", "down")),
        *((name, _POINTER) for name in ("shared_gate_up_panels", "shared_down_panels")),
        *((name, _POINTER) for name in ("shared_gate_up", "shared_down", "keys", "values")),
        *((name, _LONG) for name in ("num_experts", "top_k", "num_ff", "shared_num_ff", "moe_index")),
        ("renormalise", _INT),
        ("temperature", _FLOAT),
    )


class ModelPlan(ctypes.Structure):
    """`turnout::ModelPlan`."""

    _fields_ = (
        *((name, _POINTER) for name in ("embedding", "embedding_panels", "norm", "head")),
        *((name, _POINTER) for name in ("head_panels", "cos", "sin", "layers")),
        *((name, _LONG) for name in ("num_layers", "width", "vocab_size")),
        *((name, _LONG) for name in ("num_heads", "num_kv", "head_dim", "block_tokens")),
        ("eps", _FLOAT),
    )


class StepPlan(ctypes.Structure):
    """`turnout::StepPlan`: the new tokens of some sequences."""

    _fields_ = (
        *((name, _POINTER) for name in ("ids", "positions", "slots", "prior_row", "firsts", "lengths")),
        *((name, _POINTER) for name in ("tables", "sampled", "prior", "chosen", "logits")),
        *((name, _LONG) for name in ("num_tokens", "num_sequences", "max_blocks", "num_sampled")),
        *((name, _LONG) for name in ("prior_stride", "chosen_stride")),
    )
