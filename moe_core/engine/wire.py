"""Events as lines of JSON, one line for all that a reader has missed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from moe_core.engine.events import Delta, Done, Event, Failed, Started
from moe_core.engine.sampler import TokenLogprob
from moe_core.engine.text import TextCodec


def merged(events: Sequence[Event]) -> list[Event]:
    """The same events with neighbouring deltas of a sequence joined."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Delta) and isinstance(last, Delta) and event.sequence_id == last.sequence_id:
            result[-1] = Delta(
                event.sequence_id,
                last.text + event.text,
                last.token_ids + event.token_ids,
                last.logprobs + event.logprobs,
            )
        else:
            result.append(event)
    return result


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


def line(value: dict[str, Any]) -> bytes:
    """A value as one line of UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


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
