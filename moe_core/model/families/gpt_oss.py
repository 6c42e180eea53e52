"""gpt-oss: sinks, windows in turn with whole attention, biases everywhere, clamped experts, softmax of the top k.

Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv 2508.10925.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from moe_core.model.families.family import Family, NameMap
from moe_core.model.families.rope import RopeParameters
from moe_core.model.families.schemas import DecoderConfig
from moe_core.model.families.two_names import one_name
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.attention import AttentionSpec
from moe_core.spec.gate import SoftmaxTopk

LayerType = Literal["sliding_attention", "full_attention"]


class GptOssConfig(DecoderConfig):
    """gpt-oss's keys; `intermediate_size` is the width of one expert, for no layer is dense."""

    num_hidden_layers: int = Field(ge=1, le=512)
    num_key_value_heads: int | None = 8
    head_dim: int | None = 64
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    num_local_experts: int = 128
    num_experts_per_tok: int = 4
    attention_bias: bool = True
    sliding_window: int | None = 128
    layer_types: list[LayerType] | None = Field(default=None, max_length=512)
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    hidden_act: Literal["silu"] = "silu"
    # Of no effect on the computation.
    initial_context_length: int | None = None

    default_theta: ClassVar[float] = 150_000.0
    # Source: `GptOssConfig` of transformers 5.23. A `rope_type` of "default" says that positions are plain.
    default_rope: ClassVar[RopeParameters] = RopeParameters(
        rope_type="yarn",
        factor=32.0,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=False,
        original_max_position_embeddings=4096,
    )

    @model_validator(mode="before")
    @classmethod
    def _experts(cls, data: Any) -> Any:
        data = one_name(data, "num_local_experts", "num_experts")
        return one_name(data, "num_experts_per_tok", "experts_per_token")

    def moe_part(self) -> MoeSpec:
        """Every layer holds experts with biases."""
        return MoeSpec.parse(
            {
                "moe_layers": tuple(range(self.num_hidden_layers)),
                "num_experts": self.num_local_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.intermediate_size,
                "expert_bias": True,
                "gate": SoftmaxTopk(order="after", logit_bias=True),
            }
        )

    def attention_part(self) -> AttentionSpec:
        """Every second layer sees a window, beginning with the first, unless `layer_types` says otherwise."""
        kinds = self.layer_types or ["sliding_attention", "full_attention"] * self.num_hidden_layers
        sliding = [n for n in range(self.num_hidden_layers) if kinds[n : n + 1] == ["sliding_attention"]]
        return AttentionSpec.parse(
            {
                "qkv_bias": self.attention_bias,
                "o_bias": self.attention_bias,
                "sinks": True,
                "sliding_window": self.sliding_window if sliding else None,
                "sliding_layers": sliding if self.sliding_window else (),
            }
        )

    def more_fields(self) -> dict[str, Any]:
        """hidden_act says silu, but the experts' gating is the clamped one."""
        limits = {"swiglu_alpha": self.swiglu_alpha, "swiglu_limit": self.swiglu_limit}
        return {"activation": "clamped", **limits}


def _keys(spec: ModelSpec) -> dict[str, Any]:
    moe, kind = spec.moe, spec.attention
    assert moe is not None
    sliding = set(kind.sliding_layers)
    return {
        "hidden_act": "silu",
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "attention_bias": kind.qkv_bias,
        # transformers makes a window's mask even where no layer has one, and cannot without a number.
        "sliding_window": kind.sliding_window or GptOssConfig.model_fields["sliding_window"].default,
        "layer_types": [
            "sliding_attention" if layer in sliding else "full_attention"
            for layer in range(spec.num_hidden_layers)
        ],
        "swiglu_alpha": spec.swiglu_alpha,
        "swiglu_limit": spec.swiglu_limit,
    }


NAMES = NameMap(router="router", alternating=True)
FAMILY = Family("gpt_oss", "GptOssForCausalLM", GptOssConfig, _keys, NAMES)
