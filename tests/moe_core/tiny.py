"""Tiny models for tests: small enough to run in milliseconds, with weights large enough for faults to show."""

from __future__ import annotations

from moe_core.spec import LayoutSpec, ModelSpec

# At the usual 0.02 a swapped expert moves logits by less than rounding would hide; at 0.2 it is plain to see.
STD = 0.2


def tiny_llama(**changes: object) -> ModelSpec:
    """A dense model with grouped-query attention and a head_dim that is not width / heads."""
    fields: dict[str, object] = {
        "family": "llama",
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rope_theta": 5000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
    }
    return ModelSpec.parse({**fields, **changes})


def tiny_mixtral(**changes: object) -> ModelSpec:
    """Experts of the full width in every layer."""
    dense = tiny_llama(tie_word_embeddings=False, **changes)
    layers = tuple(range(dense.num_hidden_layers))
    return LayoutSpec(moe_layers=layers, num_experts=4, top_k=2).applied_to(dense)


def tiny_turnout() -> ModelSpec:
    """Narrow experts and a shared one in two of three layers."""
    layout = LayoutSpec(
        moe_layers=(0, 2), num_experts=5, top_k=2, num_shared_experts=1, moe_intermediate_size=32,
        shared_intermediate_size=40,
    )  # fmt: skip
    return layout.applied_to(tiny_llama())
