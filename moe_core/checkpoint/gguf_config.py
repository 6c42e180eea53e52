"""The model specification out of a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_core.checkpoint.gguf_architectures import ARCHITECTURES, Keys, Values, config_from
from moe_core.checkpoint.gguf_header import GgufHead
from moe_core.errors import FormatError, SpecError
from moe_core.model.families.registry import family_of
from moe_core.spec import ModelSpec

# Tokens that end an answer, whatever else the metadata says; used when the vocabulary has them as control tokens.
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
CONTROL_TOKEN = 3


def spec_from_metadata(head: GgufHead, name: str, values: Values) -> ModelSpec:
    """The specification; FormatError for another architecture, a missing key or an impossible value."""
    architecture = head.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise FormatError(
            f"{name}: architecture {str(architecture)[:40]!r} is not served; known are {', '.join(ARCHITECTURES)}"
        )
    config = config_from(Keys(head, architecture, name, values))
    config["eos_token_id"] = end_tokens(head.metadata)
    try:
        return family_of(config["model_type"]).schema.parse(config).to_spec()
    except SpecError as error:
        raise FormatError(f"{name}: {error}") from error


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
