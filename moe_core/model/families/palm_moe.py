"""PaLM's block with experts: attention and feed-forward read one norm and are added side by side; one key-value head.

Norms are root-mean-square, where PaLM has a layer norm without bias. transformers has no such model.
Source: Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", arXiv 2204.02311, section 2.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from moe_core.model.families.family import Family
from moe_core.model.families.glam_moe import PeriodicMoeConfig, periodic_keys
from moe_core.spec import ModelSpec


class PalmMoeConfig(PeriodicMoeConfig):
    """PaLM's choices as defaults: experts in every layer, multi-query attention, tied embeddings."""

    num_key_value_heads: int | None = 1
    expert_layer_period: int = Field(default=1, ge=1, le=512)
    tie_word_embeddings: bool = True
    hidden_act: Literal["silu"] = "silu"
    parallel_blocks: Literal[True] = True

    def more_fields(self) -> dict[str, Any]:
        """What makes the block PaLM's."""
        return {"parallel_blocks": True}


def _keys(spec: ModelSpec) -> dict[str, Any]:
    return {**periodic_keys(spec), "parallel_blocks": True}


FAMILY = Family("palm_moe", "PalmMoeForCausalLM", PalmMoeConfig, _keys, in_transformers=False)
