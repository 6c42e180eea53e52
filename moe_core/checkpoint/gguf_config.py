"""The model specification out of a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_core.checkpoint.gguf_header import GgufHead
from moe_core.errors import FormatError, SpecError
from moe_core.spec import ModelSpec

ARCHITECTURE = "llama"
# Tokens that end an answer, whatever else the metadata says; used when the vocabulary has them as control tokens.
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
CONTROL_TOKEN = 3


def spec_from_metadata(head: GgufHead, name: str) -> ModelSpec:
    """The specification; FormatError for another architecture, a missing key or an impossible value."""
    said = head.metadata
    architecture = said.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise FormatError(
            f"{name}: architecture {str(architecture)[:40]!r} is not served; known is {ARCHITECTURE!r}"
        )
    _refuse_scaled_rope(said, name)
    try:
        return ModelSpec.parse(_fields(_Keys(said, name), head))
    except SpecError as error:
        raise FormatError(f"{name}: {error}") from error


class _Keys:
    """Typed access to `llama.*` keys."""

    def __init__(self, said: Mapping[str, Any], name: str) -> None:
        self.said, self.name = said, name

    def number(self, key: str, default: float | None = None) -> Any:
        value = self.said.get(f"{ARCHITECTURE}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise FormatError(f"{self.name}: {ARCHITECTURE}.{key} must be a number, not {str(value)[:40]!r}")
        return value


def _refuse_scaled_rope(said: Mapping[str, Any], name: str) -> None:
    scaling = said.get(f"{ARCHITECTURE}.rope.scaling.type", "none")
    if scaling != "none":
        raise FormatError(
            f"{name}: rotary positions are scaled ({str(scaling)[:40]!r}); only plain ones are computed"
        )


def _fields(keys: _Keys, head: GgufHead) -> dict[str, Any]:
    heads, width = keys.number("attention.head_count"), keys.number("embedding_length")
    head_dim = keys.number("attention.key_length", width // max(heads, 1))
    embedding = head.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(f"{keys.name}: lacks the tensor token_embd.weight")
    if keys.number("rope.dimension_count", head_dim) != head_dim:
        raise FormatError(
            f"{keys.name}: rotary positions cover only a part of each head; all of it is computed"
        )
    num_layers = keys.number("block_count")
    if not 1 <= num_layers <= 512:
        raise FormatError(f"{keys.name}: {ARCHITECTURE}.block_count is {num_layers}; 1 to 512 are served")
    moe = _moe_fields(keys, num_layers)
    return {
        "family": "mixtral" if moe else "llama",
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": keys.number("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.number("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in head.tensors,
        "bos_token_id": head.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_ids": end_tokens(head.metadata),
        "moe": moe,
    }


def _moe_fields(keys: _Keys, num_layers: int) -> dict[str, Any] | None:
    experts = keys.number("expert_count", 0)
    if not experts:
        return None
    return {
        "moe_layers": list(range(num_layers)),
        "num_experts": experts,
        "top_k": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number(
            "expert_feed_forward_length", keys.number("feed_forward_length")
        ),
    }


def end_tokens(said: Mapping[str, Any]) -> list[int]:
    """Tokens that end an answer: the declared one first, then well-known ones that the vocabulary has."""
    declared = said.get("tokenizer.ggml.eos_token_id")
    tokens, kinds = said.get("tokenizer.ggml.tokens", []), said.get("tokenizer.ggml.token_type", [])
    known = [
        index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if token in END_TOKENS and kind == CONTROL_TOKEN
    ]
    first = [declared] if isinstance(declared, int) else []
    return first + [index for index in known if index not in first]
