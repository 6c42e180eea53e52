"""Small GGUF files for tests, written by the reference package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from moe_core.spec import ModelSpec

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(0x21 + i) for i in range(93)), "ab"]


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows: rotary pairs side by side."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_llama(path: Path, spec: ModelSpec, tensors: dict[str, np.ndarray]) -> Path:
    """A GGUF file of the llama architecture from tensors under their Hugging Face names."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec.num_hidden_layers)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_attention_heads)
    writer.add_head_count_kv(spec.num_key_value_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    if spec.moe:
        writer.add_expert_count(spec.moe.num_experts)
        writer.add_expert_used_count(spec.moe.top_k)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS[: spec.vocab_size])
    writer.add_token_types([3, 3, 3] + [1] * (spec.vocab_size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in llama_cpp_tensors(spec, tensors).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp_tensors(spec: ModelSpec, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors under llama.cpp's names and in its orders."""
    named: dict[str, np.ndarray] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, value in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = spec.num_attention_heads if "q_proj" in name else spec.num_key_value_heads
            value = permuted(value, heads)
        if ".experts." in name:
            layer, which = name.split(".")[2], name.split(".")[-2]
            kind = {"w1": "gate", "w2": "down", "w3": "up"}[which]
            stacks.setdefault(f"blk.{layer}.ffn_{kind}_exps.weight", []).append(value)
            continue
        named[_llama_cpp_name(name)] = value
    return named | {name: np.stack(parts) for name, parts in stacks.items()}


def _llama_cpp_name(name: str) -> str:
    for theirs, ours in (
        ("model.layers.", "blk."), ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"), ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"), ("block_sparse_moe.gate", "ffn_gate_inp"),
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name
