"""Llama and its kin (SmolLM2): the dense decoder.

Source: Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", arXiv 2302.13971.
"""

from __future__ import annotations

from typing import Any, Literal

from moe_core.model.families.family import Family
from moe_core.model.families.schemas import DecoderConfig
from moe_core.spec import ModelSpec


class LlamaConfig(DecoderConfig):
    """The keys of all families; biases are not computed."""

    attention_bias: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    sliding_window: None = None


def _keys(spec: ModelSpec) -> dict[str, Any]:
    return {"attention_bias": False, "mlp_bias": False}


FAMILY = Family("llama", "LlamaForCausalLM", LlamaConfig, _keys, has_experts=False)
