"""OLMoE: one norm over all heads of queries and one over all of keys; weights of the top k as the softmax gave them.

Source: Muennighoff et al. 2024, "OLMoE: Open Mixture-of-Experts Language Models", arXiv 2409.02060.
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


class OlmoeConfig(DecoderConfig):
    """OLMoE's keys; `intermediate_size` is the width of one expert, for no layer is dense."""

    num_hidden_layers: int = Field(ge=1, le=512)
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    num_experts: int = 64
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    clip_qkv: float | None = None
    hidden_act: Literal["silu"] = "silu"
    sliding_window: None = None

    also_neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_qk_norm": (True,)}

    @model_validator(mode="before")
    @classmethod
    def _experts(cls, data: Any) -> Any:
        return one_name(data, "num_experts", "num_local_experts")

    def moe_part(self) -> MoeSpec:
        """Every layer holds experts."""
        return MoeSpec.parse(
            {
                "moe_layers": tuple(range(self.num_hidden_layers)),
                "num_experts": self.num_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
            }
        )

    def attention_part(self) -> AttentionSpec:
        """Queries and keys are normalised before they are cut into heads, and may be clipped."""
        bias = self.attention_bias
        return AttentionSpec(qk_norm="projection", qkv_bias=bias, o_bias=bias, clip_qkv=self.clip_qkv)


def _keys(spec: ModelSpec) -> dict[str, Any]:
    moe = spec.moe
    assert moe is not None
    return {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.norm_topk_prob,
        "clip_qkv": spec.attention.clip_qkv,
        "attention_bias": spec.attention.qkv_bias,
    }


FAMILY = Family("olmoe", "OlmoeForCausalLM", OlmoeConfig, _keys)
