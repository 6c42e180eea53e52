"""Qwen3-MoE: narrow experts, a norm on each head of queries and keys.

Source: Qwen Team 2025, "Qwen3 Technical Report", arXiv 2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from moe_core.model.families.family import Family
from moe_core.model.families.schemas import DecoderConfig
from moe_core.model.families.two_names import one_name
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.attention import AttentionSpec


class QwenMoeConfig(DecoderConfig):
    """What Qwen2-MoE and Qwen3-MoE share.

    `sliding_window` says nothing while `use_sliding_window` is off, and on is not computed.
    """

    num_hidden_layers: int = Field(ge=1, le=512)
    # transformers 5.23 writes num_local_experts, released files num_experts.
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    max_position_embeddings: int = 32_768
    norm_topk_prob: bool = False
    decoder_sparse_step: int = Field(default=1, ge=1)
    mlp_only_layers: list[int] | None = Field(default=None, max_length=512)
    use_sliding_window: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    # Of no effect on the computation.
    max_window_layers: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _experts(cls, data: Any) -> Any:
        return one_name(data, "num_experts", "num_local_experts")

    def more_of_moe(self) -> dict[str, Any]:
        """Fields of the expert part that only one of them sets."""
        return {}

    def moe_part(self) -> MoeSpec:
        """Every `decoder_sparse_step`-th layer holds experts, but for those of `mlp_only_layers`."""
        dense = set(self.mlp_only_layers or ())
        layers = [
            layer
            for layer in range(self.num_hidden_layers)
            if layer not in dense and (layer + 1) % self.decoder_sparse_step == 0
        ]
        return MoeSpec.parse(
            {
                "moe_layers": layers,
                "num_experts": self.num_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.moe_intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
                **self.more_of_moe(),
            }
        )


class Qwen3MoeConfig(QwenMoeConfig):
    """Qwen3-MoE's defaults and attention."""

    num_key_value_heads: int | None = 4
    num_experts: int = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768

    # Qwen3-Coder says so.
    also_neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_qk_norm": (True,)}

    def attention_part(self) -> AttentionSpec:
        """Queries and keys are normalised head by head."""
        bias = self.attention_bias
        return AttentionSpec(qk_norm="head", qkv_bias=bias, o_bias=bias)


def qwen_moe_keys(spec: ModelSpec) -> dict[str, Any]:
    """The keys of QwenMoeConfig."""
    moe = spec.moe
    assert moe is not None
    return {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.moe_intermediate_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [n for n in range(spec.num_hidden_layers) if n not in moe.moe_layers],
        "use_sliding_window": False,
    }


def _keys(spec: ModelSpec) -> dict[str, Any]:
    return {**qwen_moe_keys(spec), "attention_bias": spec.attention.qkv_bias}


FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", Qwen3MoeConfig, _keys)
