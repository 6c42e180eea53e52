"""Tiny random transformers models of every family, with nothing left at zero or one that could hide a missing weight."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.moe_core.tiny import STD

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "initializer_range": STD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "attn_implementation": "eager",
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
    "olmoe, clipped": ("OlmoeConfig", {**OLMOE, "clip_qkv": 0.7, "tie_word_embeddings": True}),
}  # fmt: skip


def reference(case: str, seed: int = 11) -> Any:
    """The random model of a case, in float32 and evaluation mode."""
    return model_of(*CASES[case], seed=seed)


def model_of(config_class: str, changes: dict[str, Any], seed: int = 11) -> Any:
    """A random model of a configuration that differs from SHAPE."""
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**{**SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "sinks")):
                tensor.uniform_(-0.5, 0.5)
    return model.eval()


def chosen_experts(model: Any, ids_BS: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(ids, weights) of every router of a transformers model, lowest layer first: (T, K), ids ascending."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: Any, args: Any, out: Any) -> None:
        _, weights_TK, ids_TK = out
        order_TK = ids_TK.argsort(-1)
        seen.append((ids_TK.gather(-1, order_TK), weights_TK.gather(-1, order_TK)))

    routers = [m for m in model.modules() if type(m).__name__.lower().endswith("topkrouter")]
    hooks = [router.register_forward_hook(note) for router in routers]
    with torch.no_grad():
        model(ids_BS)
    for hook in hooks:
        hook.remove()
    return seen
