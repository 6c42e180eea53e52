"""Lines of plain text are cut and not read: what is cut out must be what reading would have found."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answers import Shaper
from gateway.engines import DELTA, TOKENS, event_of, plain_delta
from gateway.errors import ApiError
from moe_core.engine import wire
from moe_core.engine.events import Delta
from moe_core.engine.sampler import TokenLogprob

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["", DELTA.decode(), TOKENS.decode() + "1]}", '"logprobs":[', "\\", '\\"', "]}", "\x00\x1f\x7f\u2028 车"]
)
IDS = st.lists(st.integers(0, 1 << 20), max_size=5).map(tuple)


class Codec:
    def token_text(self, token_id: int) -> str:
        return f'"{token_id}" ]}}'

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_text(token_id).encode()


def value_of(event: Delta) -> dict[str, Any]:
    return wire.to_json(event, Codec())  # type: ignore[arg-type]


@given(TEXTS, IDS)
def test_an_engine_writes_a_plain_line_as_its_encoder_would(text, ids):
    event = Delta(1, text, ids)
    assert wire.plain_delta(event) == wire.line(value_of(event))


@given(TEXTS, IDS)
def test_what_the_gateway_cuts_out_is_what_it_would_have_read(text, ids):
    line = wire.plain_delta(Delta(1, text, ids)).rstrip(b"\n")
    found, event = plain_delta(line), event_of(line)
    if not ids:
        assert found is None
        return
    assert found is not None
    assert (json.loads(found[0]), found[1]) == (text, len(ids))
    for kind in ("chat", "text"):
        shaper = Shaper(kind, "r1", "m", "v", True, created=7)  # type: ignore[arg-type]
        assert shaper.plain(found[0]) == shaper.delta(event)


@given(TEXTS, IDS, st.booleans())
def test_lines_that_say_more_are_read(text, ids, has_marks):
    marks = tuple(TokenLogprob(one, -0.5, ((one, -0.5),)) for one in ids) if has_marks else ()
    more = {} if marks else {"index": 1}
    line = wire.line(value_of(Delta(1, text, ids, marks)) | more).rstrip(b"\n")
    assert plain_delta(line) is None
    assert event_of(line)["text"] == text


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"start","prompt_tokens":3,"reused_tokens":0}',
        b'{"type":"done","finish_reason":"stop","usage":{},"timing":{}}',
        b'{"type":"error","code":"x","message":"y"}',
        b'{"type":"delta","text":"a","token_ids":[-1]}',
    ],
)
def test_other_events_are_read(line):
    assert plain_delta(line) is None


def test_an_engine_that_says_an_error_is_heard():
    with pytest.raises(ApiError):
        event_of(b'{"type":"error","code":"not_finite","message":"y"}')
