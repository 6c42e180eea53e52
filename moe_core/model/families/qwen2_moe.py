"""Qwen2-MoE: narrow experts beside a wide shared one whose output a gate of its own weighs; biases on q, k and v.

Source: Qwen Team 2024, "Qwen2 Technical Report", arXiv 2407.10671, section 2.2.2; Qwen1.5-MoE has the same shape.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from moe_core.model.families.family import Family
from moe_core.model.families.qwen3_moe import QwenMoeConfig, qwen_moe_keys
from moe_core.spec import ModelSpec
from moe_core.spec.attention import AttentionSpec


class Qwen2MoeConfig(QwenMoeConfig):
    """Qwen2-MoE's keys."""

    num_key_value_heads: int | None = 16
    num_experts: int = 60
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = Field(default=5632, ge=1)
    qkv_bias: bool = True
    # One value only.
    attention_bias: Literal[False] = False
    layer_types: list[Literal["full_attention"]] | None = Field(default=None, max_length=512)

    def more_of_moe(self) -> dict[str, Any]:
        """The shared expert and its gate."""
        width = self.shared_expert_intermediate_size
        return {"num_shared_experts": 1, "shared_intermediate_size": width, "shared_gate": True}

    def attention_part(self) -> AttentionSpec:
        """The way back has no bias."""
        return AttentionSpec(qkv_bias=self.qkv_bias)


def _keys(spec: ModelSpec) -> dict[str, Any]:
    moe = spec.moe
    assert moe is not None
    return {
        **qwen_moe_keys(spec),
        "shared_expert_intermediate_size": moe.shared_intermediate_size,
        "qkv_bias": spec.attention.qkv_bias,
    }


FAMILY = Family("qwen2_moe", "Qwen2MoeForCausalLM", Qwen2MoeConfig, _keys)
