"""Mixtral: experts of the full width in every layer.

Source: Jiang et al. 2024, "Mixtral of Experts", arXiv 2401.04088.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from moe_core.model.families.family import Family, NameMap
from moe_core.model.families.schemas import DecoderConfig
from moe_core.model.families.two_names import one_name
from moe_core.spec import ModelSpec, MoeSpec


class MixtralConfig(DecoderConfig):
    """Mixtral's keys; released files that name a sliding window are refused, for transformers would use it."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    num_local_experts: int = Field(default=8, ge=1, le=1024)
    num_experts_per_tok: int = 2
    num_hidden_layers: int = Field(ge=1, le=512)
    rms_norm_eps: float = 1e-5
    router_jitter_noise: float = 0.0
    attention_bias: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    sliding_window: None = None

    default_theta: ClassVar[float] = 1e6

    @model_validator(mode="before")
    @classmethod
    def _experts(cls, data: Any) -> Any:
        return one_name(data, "num_local_experts", "num_experts")

    def moe_part(self) -> MoeSpec:
        """Every layer holds experts."""
        return MoeSpec.parse(
            {
                "moe_layers": tuple(range(self.num_hidden_layers)),
                "num_experts": self.num_local_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.intermediate_size,
            }
        )


def _keys(spec: ModelSpec) -> dict[str, Any]:
    moe = spec.moe
    assert moe is not None
    return {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "sliding_window": None,
    }


NAMES = NameMap(block="block_sparse_moe", expert=("w1", "w3", "w2"))
FAMILY = Family("mixtral", "MixtralForCausalLM", MixtralConfig, _keys, NAMES)
