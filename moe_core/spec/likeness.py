"""Whether a model can be written in the words of a simpler family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.spec.attention import AttentionSpec
from moe_core.spec.gate import SoftmaxTopk

if TYPE_CHECKING:
    from moe_core.spec.model import ModelSpec


def fits_mixtral(spec: ModelSpec) -> bool:
    """True when the model can be written as a Hugging Face Mixtral without loss."""
    moe = spec.moe
    return (
        moe is not None
        and moe.moe_layers == tuple(range(spec.num_hidden_layers))
        and moe.num_shared_experts == 0
        and moe.moe_intermediate_size == spec.intermediate_size
        and moe.norm_topk_prob
        and moe.temperature == 1.0
        and moe.temperature_schedule is None
        and moe.gate == SoftmaxTopk()
        and moe.capacity is None
        and moe.twins is None
        and moe.quantisation is None
        and not moe.expert_bias
        and moe.expert_kinds is None
        and is_llama_like(spec)
    )


def is_llama_like(spec: ModelSpec) -> bool:
    """True when everything but the feed-forward is as in Llama."""
    return (
        spec.attention == AttentionSpec()
        and not spec.rope.interleaved
        and spec.rope.partial_rotary_factor == 1.0
        and spec.activation == "silu"
        and not spec.expert_clamps
        and not spec.dense_clamps
        and not spec.zero_centred_norms
        and not spec.parallel_blocks
    )
