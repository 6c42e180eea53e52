"""SentencePiece vocabularies (Llama 2, Mixtral) out of GGUF metadata, as BPE with the merges that their scores stand for.

A piece is made of two others wherever both are in the vocabulary; the piece with the highest score is made first. Bytes
that no piece covers are spelled as `<0x..>`.
Source: Kudo and Richardson 2018, "SentencePiece"; llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers

from moe_core.checkpoint.stream import SPACE
from moe_core.errors import FormatError

UNKNOWN_TOKEN, CONTROL_TOKEN = 2, 3
# Longer than any piece that is learnt, and short enough to be cut everywhere.
MAX_PIECE_CHARS = 256


def sentencepiece_tokenizer(said: Mapping[str, Any], vocabulary: Mapping[str, int], name: str) -> Tokenizer:
    """The tokenizer of a vocabulary with scores; FormatError for scores that are missing or no numbers.

    Control tokens are made of no pieces, so that text which looks like one stays text.
    """
    kinds = _numbers(said, "token_type", len(vocabulary), name)
    scores = _numbers(said, "scores", len(vocabulary), name)
    unknown = [token for token, index in vocabulary.items() if kinds[index] == UNKNOWN_TOKEN]
    merges = merges_of(vocabulary, scores, {t for t, i in vocabulary.items() if kinds[i] == CONTROL_TOKEN})
    tokenizer = Tokenizer(
        models.BPE(
            dict(vocabulary),
            merges,
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend(SPACE)] if said.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def merges_of(
    vocabulary: Mapping[str, int], scores: Sequence[float], left_out: set[str]
) -> list[tuple[str, str]]:
    """Pairs of pieces that make a third, best first; ties go to the shorter left part."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        if piece in left_out or len(piece) > MAX_PIECE_CHARS:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary and not {left, right} & left_out:
                found.append((-float(scores[index]), cut, len(right), left, right))
    # Stable: pieces of equal score keep the order of the vocabulary.
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in found]


def _numbers(said: Mapping[str, Any], key: str, count: int, name: str) -> Any:
    values = said.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, np.ndarray) or len(values) != count or not np.isfinite(values).all():
        raise FormatError(f"{name}: tokenizer.ggml.{key} must be {count} numbers, one for each token")
    return values
