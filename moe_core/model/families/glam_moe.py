"""GLaM's shape: experts in every second layer, two for each token, gelu between gate and up.

Positions are rotary here, where GLaM has a relative bias; norms are root-mean-square. transformers has no such model.
Source: Du et al. 2021, "GLaM: Efficient Scaling of Language Models with Mixture-of-Experts", arXiv 2112.06905.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from moe_core.model.families.family import Family
from moe_core.model.families.schemas import DecoderConfig
from moe_core.spec import ModelSpec, MoeSpec


class PeriodicMoeConfig(DecoderConfig):
    """Experts as wide as a dense feed-forward in every `expert_layer_period`-th layer, the last of each period."""

    num_hidden_layers: int = Field(ge=1, le=512)
    num_experts: int = 64
    num_experts_per_tok: int = 2
    expert_layer_period: int = Field(default=2, ge=1, le=512)
    norm_topk_prob: bool = True
    attention_bias: Literal[False] = False
    sliding_window: None = None

    def moe_part(self) -> MoeSpec:
        """Which layers hold experts follows from the period."""
        period = self.expert_layer_period
        return MoeSpec.parse(
            {
                "moe_layers": tuple(range(period - 1, self.num_hidden_layers, period)),
                "num_experts": self.num_experts,
                "top_k": self.num_experts_per_tok,
                "moe_intermediate_size": self.intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
            }
        )


class GlamConfig(PeriodicMoeConfig):
    """GLaM's choices as defaults."""

    num_experts_per_tok: Literal[2] = 2
    hidden_act: Literal["gelu"] = "gelu"


def periodic_keys(spec: ModelSpec) -> dict[str, Any]:
    """The keys of PeriodicMoeConfig."""
    moe = spec.moe
    assert moe is not None
    return {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "expert_layer_period": moe.moe_layers[0] + 1,
        "norm_topk_prob": moe.norm_topk_prob,
    }


FAMILY = Family("glam_moe", "GlamMoeForCausalLM", GlamConfig, periodic_keys, in_transformers=False)
