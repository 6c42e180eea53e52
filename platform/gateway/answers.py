"""Answers in OpenAI's shapes, from the engine's events."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "text"]
DONE = b"data: [DONE]\n\n"
FINISH = {"stop": "stop", "length": "length", "cancelled": "stop"}


def usage_of(prompt: int, completion: int, reused: int) -> dict[str, Any]:
    """The usage object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass(slots=True)
class Shaper:
    """Turns one answer's events into chunks, or gathers them into one object."""

    kind: Kind
    request_id: str
    model: str
    version: str
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0

    def opening(self) -> bytes:
        """The first chunk: a chat names its role, a text begins with itself."""
        if self.kind == "text":
            return b""
        return self._chunk({"role": "assistant", "content": ""}, None, None)

    def delta(self, line: dict[str, Any]) -> bytes:
        """One chunk of text; nothing while bytes are held back and no log probabilities are wanted."""
        marks = self._logprobs(line.get("logprobs"))
        if not line["text"] and marks is None:
            return b""
        piece = {"content": line["text"]} if self.kind == "chat" else line["text"]
        return self._chunk(piece, None, marks)

    def closing(self, line: dict[str, Any]) -> bytes:
        """The last chunks: the reason, the usage, the mark of the end."""
        more = {"routed_experts": line["routed_experts"]} if "routed_experts" in line else {}
        last = self._chunk({} if self.kind == "chat" else "", FINISH[line["finish_reason"]], None, more)
        usage = b""
        if self.include_usage:
            usage = event({**self._head(stream=True), "choices": [], "usage": _usage(line)})
        return last + usage + DONE

    def gather(self, line: dict[str, Any]) -> None:
        """Keep a delta for `whole`."""
        self.text.append(line["text"])
        self.logprobs.extend(line.get("logprobs") or ())

    def whole(self, line: dict[str, Any]) -> dict[str, Any]:
        """The answer as one object."""
        text, marks = "".join(self.text), self._logprobs(self.logprobs or None)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": FINISH[line["finish_reason"]],
            "logprobs": marks,
        }
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        if "routed_experts" in line:
            choice["routed_experts"] = line["routed_experts"]
        return {**self._head(stream=False), "choices": [choice], "usage": _usage(line)}

    def _chunk(self, piece: Any, reason: str | None, marks: Any, more: dict[str, Any] | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": marks, **(more or {})}
        choice["delta" if self.kind == "chat" else "text"] = piece
        usage = {"usage": None} if self.include_usage else {}
        return event({**self._head(stream=True), "choices": [choice], **usage})

    def _head(self, *, stream: bool) -> dict[str, Any]:
        if self.kind == "chat":
            identity, name = (
                f"chatcmpl-{self.request_id}",
                "chat.completion.chunk" if stream else "chat.completion",
            )
        else:
            identity, name = f"cmpl-{self.request_id}", "text_completion"
        return {
            "id": identity,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.version,
        }

    def _logprobs(self, lines: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        if not lines:
            return None
        return _chat_logprobs(lines) if self.kind == "chat" else self._text_logprobs(lines)

    def _text_logprobs(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        offsets = []
        for one in lines:
            offsets.append(self._offset)
            self._offset += len(one["token"])
        return {
            "tokens": [one["token"] for one in lines],
            "token_logprobs": [one["logprob"] for one in lines],
            "top_logprobs": [{top["token"]: top["logprob"] for top in one["top"]} for one in lines],
            "text_offset": offsets,
        }


def _chat_logprobs(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "content": [{**_mark(one), "top_logprobs": [_mark(top) for top in one["top"]]} for one in lines],
        "refusal": None,
    }


def _mark(one: dict[str, Any]) -> dict[str, Any]:
    return {"token": one["token"], "logprob": one["logprob"], "bytes": list(one["token"].encode())}


def _usage(line: dict[str, Any]) -> dict[str, Any]:
    found = line["usage"]
    return usage_of(found["prompt_tokens"], found["completion_tokens"], found.get("reused_tokens", 0))
