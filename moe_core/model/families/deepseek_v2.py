"""DeepSeek-V2: V3's latent attention and shared experts with a softmax gate and no correction bias.

Source: DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
arXiv 2405.04434.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from moe_core.model.families.deepseek_v3 import DeepseekV3Config, deepseek_keys
from moe_core.model.families.family import Family, NameMap
from moe_core.model.families.two_names import one_name
from moe_core.spec import ModelSpec
from moe_core.spec.gate import SigmoidGroups


class DeepseekV2Config(DeepseekV3Config):
    """DeepSeek-V2's keys; `n_group` counts only where the method says so, and weights are never renormalised."""

    n_routed_experts: int = 64
    n_shared_experts: int = 2
    moe_intermediate_size: int = 1407
    first_k_dense_replace: int = 0
    n_group: int | None = None
    topk_group: int | None = None
    routed_scaling_factor: float = 1.0
    max_position_embeddings: int = 2048
    # transformers has no number for it.
    num_experts_per_tok: int
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"  # type: ignore[assignment]
    # One value only.
    scoring_func: Literal["softmax"] = "softmax"  # type: ignore[assignment]
    norm_topk_prob: Literal[False] = False
    rope_interleave: Literal[True] = True

    @model_validator(mode="before")
    @classmethod
    def _routed_experts(cls, data: Any) -> Any:
        return one_name(data, "n_routed_experts", "num_experts")

    def gate_part(self) -> SigmoidGroups:
        """Softmax scores, and groups worth their best expert."""
        limited = self.topk_method == "group_limited_greedy"
        return SigmoidGroups.parse(
            {
                "scores": "softmax",
                "selection_bias": False,
                "group_score": "best",
                "num_groups": self.n_group or 1 if limited else 1,
                "topk_group": self.topk_group or 1 if limited else 1,
                "routed_scaling_factor": self.routed_scaling_factor,
            }
        )

    def more_fields(self) -> dict[str, Any]:
        """As in V3, under its own name."""
        return {**super().more_fields(), "family": "deepseek_v2"}


def _keys(spec: ModelSpec) -> dict[str, Any]:
    keys = deepseek_keys(spec)
    return {**keys, "topk_method": "greedy" if keys["n_group"] == 1 else "group_limited_greedy"}


FAMILY = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    DeepseekV2Config,
    _keys,
    NameMap(shared="mlp.shared_experts"),
    latent_attention=True,
)
