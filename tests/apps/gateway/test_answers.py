"""Chunks are written around their text; they must be what a JSON encoder would have written whole."""

from __future__ import annotations

import json

import pytest

from gateway.answers import SLOT, Kind, Shaper

TEXTS = ["hello", "", 'a "quoted"\n\\ 车\u2028', SLOT, f'"{SLOT}"', "\x00\x1f", "{}%s"]


def shaper(kind: Kind, usage: bool) -> Shaper:
    return Shaper(kind, "r1", f'a "{SLOT}"', "v1 r2", usage, num_choices=2, created=7)


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("usage", [False, True])
def test_a_chunk_holds_its_text_and_the_same_fields_in_the_same_order(kind: Kind, usage: bool) -> None:
    one = shaper(kind, usage)
    for text in filter(None, TEXTS):
        for index in (0, 1):
            data = one.delta({"type": "delta", "text": text, "token_ids": [1], "index": index})
            assert data.startswith(b"data: {")
            assert data.endswith(b"}\n\n")
            assert data.count(b"\n") == 2
            piece = {"delta": {"content": text}} if kind == "chat" else {"text": text}
            wanted = {
                "id": "chatcmpl-r1" if kind == "chat" else "cmpl-r1",
                "object": "chat.completion.chunk" if kind == "chat" else "text_completion",
                "created": 7,
                "model": f'a "{SLOT}"',
                "system_fingerprint": "v1 r2",
                "choices": [{"index": index, "finish_reason": None, "logprobs": None, **piece}],
                **({"usage": None} if usage else {}),
            }
            assert data[6:-2].decode() == json.dumps(wanted, ensure_ascii=False, separators=(",", ":"))


def test_nothing_is_sent_while_no_character_is_complete() -> None:
    assert shaper("chat", False).delta({"type": "delta", "text": "", "token_ids": [1]}) == b""
