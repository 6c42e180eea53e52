"""transformers models written as llama.cpp's converter writes them: the reference package's names, its own orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from tests.moe_core.checkpoint.gguf_files import TOKENS, permuted
from tests.moe_core.model.hf_families import tensors_of

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "step3p5": gguf.MODEL_ARCH.STEP35,
}
SIGMOID, SOFTMAX = gguf.ExpertGatingFuncType.SIGMOID, gguf.ExpertGatingFuncType.SOFTMAX
Storing = Callable[[str, np.ndarray], tuple[np.ndarray, gguf.GGMLQuantizationType]]
Tensors = dict[str, np.ndarray]


def plain(name: str, value: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """Everything in float32."""
    return value, gguf.GGMLQuantizationType.F32


def widened(storing: Storing) -> Storing:
    """What `storing` makes of a tensor, put back in float32 by the reference package."""

    def stored(name: str, value: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
        raw, kind = storing(name, value)
        return np.asarray(dequantize(raw, kind), np.float32), gguf.GGMLQuantizationType.F32

    return stored


def as_they_are(tensors: Tensors) -> Tensors:
    """No change."""
    return tensors


def write_gguf(
    path: Path, model: Any, storing: Storing = plain, change: Callable[[Tensors], Tensors] = as_they_are
) -> Path:
    """A GGUF file of a transformers model; `storing` says how each tensor lies in it, `change` renames and joins."""
    config = model.config
    if config.model_type == "step3p7":
        config = config.text_config
    architecture = ARCHITECTURES["step3p5" if is_step(config) else config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _sizes(writer, config)
    if is_step(config):
        _step(writer, config)
    else:
        _positions(writer, config)
    _OWN.get(config.model_type, lambda writer, config: None)(writer, config)
    _vocabulary(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors = {
        names.get_name(name, try_suffixes=(".weight", ".bias")): value for name, value in _tensors(model)
    }
    assert None not in tensors
    for name, value in change(tensors).items():
        raw, kind = storing(name, value) if value.ndim > 1 else plain(name, value)
        writer.add_tensor(name, np.ascontiguousarray(raw), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    if not is_step(config):
        writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if not config.model_type.startswith("deepseek"):
        if not is_step(config):
            writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.model_type != "llama":
        experts = config.n_routed_experts if is_step(config) else getattr(config, "num_local_experts", None)
        experts = experts or config.num_experts
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def is_step(config: Any) -> bool:
    """The text part of a Step-3.7."""
    return config.model_type.startswith("step3p")


def _step(writer: gguf.GGUFWriter, config: Any) -> None:
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    # Heads of the layers that see everything; the others' number stands beside it.
    config.allow_global_per_layer_attribute_access = True
    heads = (config.num_attention_heads, config.num_sliding_attention_heads)
    writer.add_head_count([heads[sliding] for sliding in slides])
    writer.add_head_count_kv([config.num_key_value_heads] * len(slides))
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(slides)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.share_expert_dim)
    writer.add_expert_weights_scale(config.moe_router_scaling_factor)
    writer.add_expert_weights_norm(True)
    writer.add_leading_dense_block_count(config.mlp_layer_types.index("sparse"))
    writer.add_swiglu_clamp_exp([float(limit or 0.0) for limit in config.swiglu_limits])
    writer.add_swiglu_clamp_shexp([float(limit or 0.0) for limit in config.swiglu_limits_shared])


def _positions(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _llama(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)


def _qwen(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _deepseek(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_head_count_kv(1)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    if config.n_group is not None:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    writer.add_expert_gating_func(SIGMOID if config.model_type == "deepseek_v3" else SOFTMAX)
    if config.norm_topk_prob:
        writer.add_expert_weights_norm(True)
    if config.rope_parameters.get("mscale_all_dim") is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * config.rope_parameters["mscale_all_dim"])


def _gpt_oss(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_feed_forward_length(config.intermediate_size)


_OWN: dict[str, Callable[[gguf.GGUFWriter, Any], None]] = {
    "llama": _llama, "mixtral": _llama, "qwen2_moe": _qwen, "qwen3_moe": _qwen, "deepseek_v3": _deepseek,
    "deepseek_v2": _deepseek,
    "gpt_oss": _gpt_oss,
}  # fmt: skip


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS[:size])
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors under names that the reference package's map knows, merged, split and reordered."""
    config = model.config
    if config.model_type == "step3p7":
        yield from _step_tensors(model)
        return
    for name, tensor in model.state_dict().items():
        value = tensor.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type in ("llama", "mixtral") and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            yield name, permuted(value, heads)
        elif name.endswith("kv_b_proj.weight"):
            yield from _latent(name, value, config)
        elif ".experts." in name:
            yield from _experts(name, value, alternating=config.model_type == "gpt_oss")
        elif name.endswith("sinks"):
            yield name + ".weight", value
        else:
            name = name.replace("e_score_correction_bias", "e_score_correction.bias")
            yield name, value.squeeze(0) if name.endswith("shared_expert_gate.weight") else value


# transformers' names and those of the released files.
STEP_NAMES = {
    ".mlp.gate.e_score_correction_bias": ".moe.router_bias.bias",
    ".mlp.gate.": ".moe.gate.",
    ".mlp.experts.": ".moe.",
    ".mlp.shared_experts.": ".share_expert.",
}


def _step_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The text as it was released; norms with the one that the model adds."""
    for name, tensor in tensors_of(model).items():
        value = tensor.float().numpy()
        for theirs, released in STEP_NAMES.items():
            name = name.replace(theirs, released)
        if name.endswith("norm.weight"):
            yield name, value + np.float32(1.0)
        elif name.endswith((".moe.gate_up_proj", ".moe.down_proj")):
            yield from _experts(name, value, alternating=False)
        else:
            yield name, value


def _latent(name: str, value: np.ndarray, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    nope = config.qk_nope_head_dim
    heads = value.reshape(config.num_attention_heads, nope + config.v_head_dim, -1)
    yield name.replace("kv_b_proj", "k_b_proj"), heads[:, :nope].swapaxes(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), heads[:, nope:]


def _experts(name: str, value: np.ndarray, *, alternating: bool) -> Iterator[tuple[str, np.ndarray]]:
    stem, _, part = name.rpartition(".")
    kind = "bias" if part.endswith("_bias") else "weight"
    if alternating and kind == "weight":
        value = value.swapaxes(1, 2)
    if part.startswith("down_proj"):
        yield f"{stem}.down_proj.{kind}", value
        return
    half = value.shape[1] // 2
    gate, up = (value[:, ::2], value[:, 1::2]) if alternating else (value[:, :half], value[:, half:])
    yield f"{stem}.gate_proj.{kind}", gate
    yield f"{stem}.up_proj.{kind}", up
