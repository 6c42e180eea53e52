"""Which tokenizer.json files are loaded: known parts only, for a part can hold a pattern of any cost."""

from __future__ import annotations

from typing import Any

from moe_core.errors import FormatError
from moe_core.spec import ModelSpec

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
MAX_PATTERN_CHARS = 512
_MODELS = {"BPE", "Unigram"}
_PARTS = {
    "normalizer": {"Sequence", "Prepend", "Replace", "NFC", "NFKC"},
    "pre_tokenizer": {"Sequence", "ByteLevel", "Digits", "Split", "Metaspace"},
    "post_processor": {"Sequence", "ByteLevel", "TemplateProcessing"},
    "decoder": {"Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"},
}
_CHILDREN = ("normalizers", "pretokenizers", "processors", "decoders")


def check_tokenizer_json(data: dict[str, Any]) -> None:
    """Raise FormatError when a tokenizer has parts that we do not know."""
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") not in _MODELS:
        raise FormatError(f"tokenizer.json: the model must be one of {', '.join(sorted(_MODELS))}")
    for slot, known in _PARTS.items():
        _check_part(slot, data.get(slot), known)


def check_vocabulary(num_tokens: int, spec: ModelSpec, name: str) -> None:
    """Raise FormatError when a tokenizer has tokens that the model has no embedding for."""
    if num_tokens > spec.vocab_size:
        raise FormatError(f"{name}: has {num_tokens} tokens, but the model embeds {spec.vocab_size}")


def _check_part(slot: str, part: Any, known: set[str]) -> None:
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in known:
        raise FormatError(
            f"tokenizer.json: {slot} {str(kind)[:40]!r} is not known; known are {', '.join(sorted(known))}"
        )
    pattern = part.get("pattern")
    texts = pattern.values() if isinstance(pattern, dict) else [pattern or ""]
    if any(not isinstance(text, str) or len(text) > MAX_PATTERN_CHARS for text in texts):
        raise FormatError(f"tokenizer.json: a pattern of {slot} has more than {MAX_PATTERN_CHARS} characters")
    for children in _CHILDREN:
        for child in part.get(children) or []:
            _check_part(slot, child, known)
