"""SentencePiece vocabularies from GGUF: cut as transformers cuts, streamed as decoded, control tokens never made of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.checkpoint.gguf_header import GgufHead
from moe_core.checkpoint.gguf_tokenizer import write_tokenizer
from moe_core.checkpoint.stream import SPACE
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.errors import FormatError
from tests.moe_core.tiny import tiny_llama

WORDS = (
    "▁the", "▁th", "▁t", "he", "th", "in", "ing", "▁s", "st", "ring", "▁string", "er", "▁▁", "an", "and", "▁and",
    "ri", "▁st", "▁stri", "ng", "好", "你好", "▁你", "<s", "/s>", "<0",
)  # fmt: skip
LETTERS = "▁abcdefghijklmnopqrstuvwxyz你<>/s0xA"
TOKENS = list(
    dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *LETTERS, *WORDS])
)
KINDS = [2, 3, 3, *[6] * 256, *[1] * (len(TOKENS) - 259)]
SCORES = [0.0] * 259 + [-float(place * 7 % 31) for place in range(len(TOKENS) - 259)]
SAID: dict[str, Any] = {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.scores": np.array(SCORES, np.float32), "tokenizer.ggml.token_type": np.array(KINDS, np.int32),
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip
TEXTS = [
    "the string and the other", "standing in the ring", "你好 the 世界", "x\ny 🙂 z", "a  b   c", "</s> <s> <0x41>",
    "", "q",
]  # fmt: skip


def tokenizer_of(folder: Path, **changes: Any) -> Tokenizer:
    spec = tiny_llama(vocab_size=len(TOKENS))
    write_tokenizer(folder, GgufHead({**SAID, **changes}, {}), spec, "x.gguf")
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("sentencepiece"))


@pytest.mark.parametrize("text", [text for text in TEXTS if "<" not in text])
def test_text_is_cut_as_transformers_cuts_it(ours: Tokenizer, text: str) -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    theirs = mapping.sentencepiece_tokenizer({"tokens": TOKENS, "scores": SCORES})
    expected = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text)[1:] == expected
    assert ours.decode(expected) == text


def test_a_prompt_begins_with_the_begin_token_unless_the_file_says_otherwise(
    ours: Tokenizer, tmp_path: Path
) -> None:
    assert ours.encode("the")[0] == 1
    assert 1 not in tokenizer_of(tmp_path, **{"tokenizer.ggml.add_bos_token": False}).encode("the")


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
def test_a_stream_is_what_decoding_at_once_gives(ours: Tokenizer, text: str) -> None:
    # The mark for spaces is read back as a space.
    text = text.replace(SPACE, "")
    ids = ours.encode(text)
    stream = ours.stream()
    pieces = [stream.step(token) for token in ids]
    assert "".join(pieces) + stream.finish() == ours.decode(ids) == text
    assert not {1, 2} & set(ids[1:])


def test_without_a_prefix_nothing_is_put_before_a_text(tmp_path: Path) -> None:
    plain = tokenizer_of(tmp_path, **{"tokenizer.ggml.add_space_prefix": False})
    ids = plain.encode(" the")
    stream = plain.stream()
    assert plain.decode(ids) == "".join(map(stream.step, ids)) == " the"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokenizer.ggml.scores": np.zeros(3, np.float32)}, "scores must be"),
        ({"tokenizer.ggml.scores": np.full(len(TOKENS), np.nan, np.float32)}, "scores must be"),
        ({"tokenizer.ggml.token_type": None}, "token_type must be"),
    ],
)
def test_broken_vocabularies_are_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=sentence):
        tokenizer_of(tmp_path, **change)
