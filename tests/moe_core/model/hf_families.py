"""Tiny random transformers models of every family, with nothing left at zero or one that could hide a missing weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.moe_core.tiny import STD

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "initializer_range": STD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip

QWEN = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True}
OLMOE = {"head_dim": 8, "num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 24}
DEEPSEEK = {
    "head_dim": 8, "num_key_value_heads": 6, "moe_intermediate_size": 24, "n_routed_experts": 8, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "q_lora_rank": 20,
    "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "num_nextn_predict_layers": 0,
}  # fmt: skip
DEEPSEEK_V2 = {
    **{
        key: value
        for key, value in DEEPSEEK.items()
        if key not in ("n_group", "topk_group", "num_nextn_predict_layers")
    },
    "routed_scaling_factor": 3.0,
}
YARN = {
    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 16,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip

# The context is short enough for pairs of all three kinds: kept, blended, stretched.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip

# Lists are as long as the deepest case needs; transformers counts a clamp of 0 as none.
STEP = {
    "num_hidden_layers": 4, "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "share_expert_dim": 20, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "sliding_window": 6,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_sliding_attention_heads": 8, "moe_router_scaling_factor": 1.5, "swiglu_limits": [0.0, 1.2, 0.0, 0.8],
    "swiglu_limits_shared": [0.4, 0.3, 0.2, 0.0], "pad_token_id": 0,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.75},
    },
}  # fmt: skip
TINY_SIGHT = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip

# name: (config class, what differs from SHAPE)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, stretched": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral, stretched": (
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": LLAMA3},
    ),
    "qwen2_moe": ("Qwen2MoeConfig", {**QWEN, "shared_expert_intermediate_size": 40}),
    "qwen2_moe, sparse steps, no biases": (
        "Qwen2MoeConfig",
        {
            **QWEN, "shared_expert_intermediate_size": 40, "qkv_bias": False, "mlp_only_layers": [2],
            "norm_topk_prob": False,
        },
    ),
    "qwen3_moe": ("Qwen3MoeConfig", QWEN),
    "qwen3_moe, sparse steps, biases": (
        "Qwen3MoeConfig",
        {**QWEN, "decoder_sparse_step": 2, "norm_topk_prob": False, "attention_bias": True, "num_hidden_layers": 4},
    ),
    "olmoe": ("OlmoeConfig", OLMOE),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK),
    "deepseek_v3, yarn, no low rank of queries": (
        "DeepseekV3Config",
        {
            **DEEPSEEK, "q_lora_rank": None, "rope_interleave": False, "n_group": 1, "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}, "norm_topk_prob": False,
        },
    ),
    "deepseek_v2": ("DeepseekV2Config", {**DEEPSEEK_V2, "q_lora_rank": None}),
    "deepseek_v2, groups, yarn": (
        "DeepseekV2Config",
        {
            **DEEPSEEK_V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7},
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "sliding_window": 6,
            "swiglu_limit": 0.8,
            "num_hidden_layers": 4,
            # Long enough for the ends of the blend to lie between whole pairs.
            "rope_parameters": {**YARN, "truncate": False, "original_max_position_embeddings": 64},
        },
    ),
    "step3p5": ("Step3p7Config", STEP),
    "step3p5, stretched, as released": (
        "Step3p7Config",
        {
            **{key: value for key, value in STEP.items() if key not in ("rope_parameters", "mlp_layer_types")},
            "rope_theta": [5000.0, 100.0, 100.0, 5000.0], "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5],
            "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 24}, "moe_layers_enum": "1,2,3",
            "swiglu_limits_shared": None, "tie_word_embeddings": True,
        },
    ),
    "step3p5, as many heads everywhere": (
        "Step3p7Config", {**STEP, "num_sliding_attention_heads": SHAPE["num_attention_heads"]},
    ),
    "olmoe, clipped": ("OlmoeConfig", {**OLMOE, "clip_qkv": 0.7, "tie_word_embeddings": True}),
}  # fmt: skip


def reference(case: str, seed: int = 11) -> Any:
    """The random model of a case, in float32 and evaluation mode."""
    return model_of(*CASES[case], seed=seed)


def model_of(config_class: str, changes: dict[str, Any], seed: int = 11) -> Any:
    """A random model of a configuration that differs from SHAPE."""
    torch.manual_seed(seed)
    if config_class == "Step3p7Config":
        model = step_of(changes)
    else:
        config = getattr(transformers, config_class)(**{**SHAPE, **changes})
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=attention_of(config.model_type)
        )
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                # Step's norms multiply by 1 + weight.
                tensor.uniform_(0.5, 1.5).sub_(1.0 if config_class == "Step3p7Config" else 0.0)
            elif name.endswith(("bias", "sinks")):
                tensor.uniform_(-0.5, 0.5)
    return model.eval()


def attention_of(model_type: str) -> str:
    """What transformers attends with of itself: torch's fused attention, as ours does; sinks are beyond that.

    Its other way rounds the sums of the softmax elsewhere, by as much as the tolerance of float32.
    """
    return "eager" if model_type == "gpt_oss" else "sdpa"


def step_of(changes: dict[str, Any]) -> Any:
    """A Step-3.7 with a tiny part that sees: transformers has a head for its text nowhere else."""
    shape = {key: SHAPE[key] for key in SHAPE if key != "rope_parameters"}
    text = {**shape, **changes}
    depth = text["num_hidden_layers"]
    text = {key: value[:depth] if isinstance(value, list) else value for key, value in text.items()}
    tied = text.get("tie_word_embeddings", False)
    config = transformers.Step3p7Config(text_config=text, vision_config=TINY_SIGHT, tie_word_embeddings=tied)
    return transformers.Step3p7ForConditionalGeneration._from_config(config)


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Every tensor of a model's text, named as if it were all of the model."""
    state = {name.replace(".language_model.", "."): tensor for name, tensor in model.state_dict().items()}
    return {
        name: state[name] for name in state if ".vision_model." not in name and ".multi_modal" not in name
    }


def read_back(directory: Path, theirs: Any) -> Any:
    """A directory of ours as transformers reads it; a text gets back the part that sees of `theirs`."""
    attention = attention_of(theirs.config.model_type)
    options = {"dtype": torch.float32, "attn_implementation": attention}
    if theirs.config.model_type != "step3p7":
        return transformers.AutoModelForCausalLM.from_pretrained(directory, **options)
    text = json.loads((directory / "config.json").read_text("utf-8"))
    sight, tied = theirs.config.vision_config.to_dict(), text["tie_word_embeddings"]
    whole = transformers.Step3p7Config(text_config=text, vision_config=sight, tie_word_embeddings=tied)
    whole.save_pretrained(directory)
    again = transformers.Step3p7ForConditionalGeneration.from_pretrained(directory, **options)
    for part in ("vision_model", "multi_modal_projector"):
        getattr(again.model, part).load_state_dict(getattr(theirs.model, part).state_dict())
    return again


def chosen_experts(model: Any, ids_BS: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(ids, weights) of every router of a transformers model, lowest layer first: (T, K), ids ascending."""
    seen: list[tuple[Tensor, Tensor]] = []
    # Step's block scales what comes out of the experts, and not their weights.
    scales = {
        block.gate: block.routed_scaling_factor
        for block in model.modules()
        if type(block).__name__ == "Step3p7SparseMoeBlock"
    }

    def note(module: Any, args: Any, out: Any) -> None:
        _, weights_TK, ids_TK = out
        weights_TK = weights_TK * scales.get(module, 1.0)
        order_TK = ids_TK.argsort(-1)
        seen.append((ids_TK.gather(-1, order_TK), weights_TK.gather(-1, order_TK)))

    routers = [m for m in model.modules() if type(m).__name__.lower().endswith("topkrouter")]
    hooks = [router.register_forward_hook(note) for router in routers]
    with torch.no_grad():
        model(ids_BS)
    for hook in hooks:
        hook.remove()
    return seen
