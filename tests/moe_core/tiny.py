"""Tiny models for tests: small enough to run in milliseconds, with weights large enough for faults to show."""

from __future__ import annotations

from moe_core.model.families import spec_of
from moe_core.spec import LayoutSpec, ModelSpec
from moe_core.spec.seq2seq import Seq2SeqSpec

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


_SHAPE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 5000.0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
_FAMILIES: dict[str, dict[str, object]] = {
    "qwen2_moe": {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1],
        "shared_expert_intermediate_size": 40,
    },
    "qwen3_moe": {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 12,
        "mlp_only_layers": [1], "attention_bias": True,
    },
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 2.0},
    "deepseek_v3": {
        "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 8, "n_shared_experts": 2,
        "num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "q_lora_rank": 20,
        "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
        "rope_scaling": {**_YARN, "mscale": 0.7, "mscale_all_dim": 1.2},
    },
    "deepseek_v2": {
        "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 8, "n_shared_experts": 2,
        "num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "q_lora_rank": None,
        "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
        "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0,
    },
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 5, "swiglu_limit": 0.8,
        "rope_scaling": {**_YARN, "truncate": False},
    },
    "glam_moe": {"num_experts": 6, "hidden_act": "gelu", "num_hidden_layers": 4},
    "palm_moe": {"num_experts": 6, "num_key_value_heads": 1},
    "step3p5": {
        "head_dim": 16, "moe_intermediate_size": 24, "n_routed_experts": 6, "num_experts_per_tok": 2,
        "share_expert_dim": 20, "moe_layers_enum": "1,2", "moe_router_scaling_factor": 1.5, "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "attention_other_setting": {"num_attention_heads": 6}, "rope_theta": [5000.0, 1000.0, 1000.0],
        "partial_rotary_factors": [0.5, 1.0, 1.0], "swiglu_limits": [0.0, 0.0, 0.3],
        "swiglu_limits_shared": [0.4, 0.0, 0.5],
    },
}  # fmt: skip
FAMILIES = tuple(_FAMILIES)


def tiny_family(family: str, **keys: object) -> ModelSpec:
    """A tiny member of a family, by the keys of its own config.json and the given ones."""
    return spec_of({"model_type": family, **_SHAPE, **_FAMILIES[family], **keys})


_SEQ2SEQ: dict[str, dict[str, object]] = {
    "switch_transformers": {
        "d_kv": 10, "d_ff": 40, "num_layers": 4, "num_sparse_encoder_layers": 2, "num_decoder_layers": 4,
        "num_sparse_decoder_layers": 2, "num_heads": 4, "num_experts": 4, "decoder_start_token_id": 0,
        "relative_attention_num_buckets": 12, "relative_attention_max_distance": 14, "pad_token_id": 0,
    },
    "nllb-moe": {
        "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 56,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_experts": 5, "encoder_sparse_step": 2,
        "decoder_sparse_step": 2, "pad_token_id": 1, "decoder_start_token_id": 2,
    },
}  # fmt: skip
SEQ2SEQ = tuple(_SEQ2SEQ)


def tiny_seq2seq(model_type: str, **changes: object) -> Seq2SeqSpec:
    """A tiny encoder–decoder, by the keys of its own config.json."""
    from moe_core.checkpoint.seq2seq import spec_of as seq2seq_of

    keys = {"model_type": model_type, "vocab_size": 97, "d_model": 48, **_SEQ2SEQ[model_type], **changes}
    return seq2seq_of(keys)
