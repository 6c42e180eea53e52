"""Events as lines of JSON, one line of a sequence for all that a reader has missed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

from moe_core.engine.events import Delta, Done, Event, Failed, Started
from moe_core.engine.sampler import TokenLogprob
from moe_core.engine.text import TextCodec

# Made once: `json.dumps` with options of its own makes an encoder each time.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# How that encoder writes a string.
_quoted = json.encoder.encode_basestring


def merged(events: Sequence[Event]) -> list[Event]:
    """The same events with the deltas of each sequence joined; between sequences the order may change."""
    if len(events) == 1:
        return list(events)
    result: list[Event] = []
    gathered: dict[int, list[Delta]] = {}
    for event in events:
        if isinstance(event, Delta):
            gathered.setdefault(event.sequence_id, []).append(event)
            continue
        if event.sequence_id in gathered:
            result.append(_joined(gathered.pop(event.sequence_id)))
        result.append(event)
    result += map(_joined, gathered.values())
    return result


def _joined(deltas: list[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        deltas[0].sequence_id,
        "".join(delta.text for delta in deltas),
        tuple(chain.from_iterable(delta.token_ids for delta in deltas)),
        tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
    )


def to_json(event: Event, codec: TextCodec) -> dict[str, Any]:
    """One event as the client sees it."""
    if isinstance(event, Delta):
        return _delta(event, codec)
    if isinstance(event, Started):
        return {
            "type": "start",
            "prompt_tokens": event.num_prompt_tokens,
            "reused_tokens": event.num_reused_tokens,
        }
    if isinstance(event, Done):
        return _done(event)
    return {"type": "error", "code": event.code, "message": event.message}


def plain_delta(event: Delta) -> bytes:
    """The line of a delta without log probabilities of the only answer to a request: what `line` makes, in a third of
    the time."""
    ids = ",".join(map(str, event.token_ids))
    return f'{{"type":"delta","text":{_quoted(event.text)},"token_ids":[{ids}]}}\n'.encode()


def line(value: dict[str, Any]) -> bytes:
    """A value as one line of UTF-8."""
    return _encode(value).encode() + b"\n"


def is_last(event: Event) -> bool:
    """Whether nothing follows this event."""
    return isinstance(event, Done | Failed)


def _delta(event: Delta, codec: TextCodec) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "delta", "text": event.text, "token_ids": list(event.token_ids)}
    if event.logprobs:
        value["logprobs"] = [_logprob(logprob, codec) for logprob in event.logprobs]
    return value


def _logprob(logprob: TokenLogprob, codec: TextCodec) -> dict[str, Any]:
    return {
        **_token(logprob.token_id, logprob.logprob, codec),
        "top": [_token(token_id, value, codec) for token_id, value in logprob.top],
    }


def _token(token_id: int, logprob: float, codec: TextCodec) -> dict[str, Any]:
    text, data = codec.token_text(token_id), codec.token_bytes(token_id)
    value: dict[str, Any] = {"token_id": token_id, "token": text, "logprob": round(logprob, 5)}
    # A part of a character, or a control token: the text does not say its bytes.
    return value if text.encode() == data else value | {"bytes": list(data)}


def _done(event: Done) -> dict[str, Any]:
    value: dict[str, Any] = {
        "type": "done",
        "finish_reason": str(event.reason),
        "usage": {
            "prompt_tokens": event.num_prompt_tokens,
            "completion_tokens": event.num_output_tokens,
            "reused_tokens": event.num_reused_tokens,
        },
        "timing": event.timing_ms,
    }
    if event.routed_experts is not None:
        value["routed_experts"] = event.routed_experts
    return value
