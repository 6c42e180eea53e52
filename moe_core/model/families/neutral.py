"""Keys that a released config.json has without saying anything.

Some change nothing whatever they say: how a program runs, what it gives back, what wrote the file. Others belong to other
families or to how transformers samples, and say nothing with the value that means "none of it" only.
Source: `PretrainedConfig` of transformers 4 and 5.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

# Of no effect on what a model computes. Code that auto_map names is never run.
WITHOUT_EFFECT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation",
        "_experts_implementation_autoset",
        "_flash_attn_2_enabled",
        "_use_flash_attention_2",
        "attn_implementation",
        "auto_map",
        "chunk_size_feed_forward",
        "cls_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "is_decoder",
        "label2id",
        "model_max_length",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tokenizer_class",
        "torchscript",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
    }
)
# What each key must say where a family has no such thing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "qkv_bias": (False,),
    "mlp_bias": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "layer_types": (None,),
    "mlp_only_layers": (None, []),
    "decoder_sparse_step": (1,),
    "moe_layer_freq": (1,),
    "first_k_dense_replace": (0,),
    "n_shared_experts": (None, 0),
    "num_shared_experts": (None, 0),
    "shared_expert_intermediate_size": (None, 0),
    "n_group": (None, 1),
    "topk_group": (None, 1),
    "routed_scaling_factor": (None, 1.0),
    "router_jitter_noise": (0.0,),
    "num_nextn_predict_layers": (None, 0),
    "partial_rotary_factor": (1.0,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "attention_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "residual_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "decoder_start_token_id": (None,),
    "prefix": (None, ""),
    "pruned_heads": (None, {}),
    # How transformers samples unless it is told; generation_config.json is not read either.
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "diversity_penalty": (0.0,),
    "do_sample": (False,),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "length_penalty": (1.0,),
    "max_length": (20,),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "output_scores": (False,),
    "remove_invalid_values": (False,),
    "repetition_penalty": (1.0,),
    "suppress_tokens": (None,),
    "temperature": (1.0,),
    "top_k": (50,),
    "top_p": (1.0,),
    "typical_p": (1.0,),
}


def without_effect(data: Any, known: Collection[str]) -> Any:
    """`data` without the keys that its family does not know and that change nothing, whatever they say."""
    if not isinstance(data, dict):
        return data
    return {key: value for key, value in data.items() if key in known or key not in WITHOUT_EFFECT}


def without_neutral(data: Any, known: Collection[str], neutral: Mapping[str, tuple[Any, ...]]) -> Any:
    """`data` without the keys that its family does not know and that say nothing.

    Raises ValueError naming key, value and what is computed, where such a key says something.
    """
    if not isinstance(data, dict):
        return data
    data = without_effect(data, known)
    foreign = {key: data[key] for key in data if key in neutral and key not in known}
    for key, value in foreign.items():
        if not any(_same(value, nothing) for nothing in neutral[key]):
            wanted = " or ".join(_json(nothing) for nothing in neutral[key])
            raise ValueError(
                f"{key} is {_json(value)[:80]}, which is not computed for this family; it must be {wanted}, or left out"
            )
    return {key: value for key, value in data.items() if key not in foreign}


def _same(value: Any, nothing: Any) -> bool:
    # False is not 0, but 1 is 1.0.
    return isinstance(value, bool) == isinstance(nothing, bool) and bool(value == nothing)


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
