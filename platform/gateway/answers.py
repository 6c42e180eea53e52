"""Answers in OpenAI's shapes, from the engine's events."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "text"]
# Made once: `json.dumps` with options of its own makes an encoder each time.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
DONE = b"data: [DONE]\n\n"
# Stands for a chunk's text while what is around it is written.
SLOT = "text of the chunk"
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
    return f"data: {_encode(value)}\n\n".encode()


@dataclass(slots=True)
class _Choice:
    """One of the answers to a request, as far as it has come."""

    index: int
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Any] | None = None
    # Where its next token begins in its text.
    offset: int = 0


@dataclass(slots=True)
class Shaper:
    """Turns the events of a request's answers into chunks, or gathers them into one object."""

    kind: Kind
    request_id: str
    model: str
    version: str
    include_usage: bool = False
    num_choices: int = 1
    created: int = field(default_factory=lambda: int(time.time()))
    choices: list[_Choice] = field(init=False)
    _around: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.choices = [_Choice(index) for index in range(self.num_choices)]

    @property
    def is_complete(self) -> bool:
        """Whether every answer has ended."""
        return all(choice.done is not None for choice in self.choices)

    def opening(self) -> bytes:
        """The first chunks: a chat names its role, a text begins with itself."""
        if self.kind == "text":
            return b""
        opened = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(choice, opened, None, None) for choice in self.choices)

    def delta(self, line: dict[str, Any]) -> bytes:
        """One chunk of text; nothing while bytes are held back and no log probabilities are wanted."""
        choice = self._choice(line)
        marks = self._logprobs(choice, line.get("logprobs"))
        if not line["text"] and marks is None:
            return b""
        if marks is None:
            return self.plain(_encode(line["text"]).encode(), choice.index)
        piece = {"content": line["text"]} if self.kind == "chat" else line["text"]
        return self._chunk(choice, piece, None, marks)

    def plain(self, text: bytes, index: int = 0) -> bytes:
        """One chunk of text that is JSON already; nothing for none."""
        if text == b'""':
            return b""
        before, after = self._around_text(index)
        return before + text + after

    def _around_text(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text of a chunk of one answer: the same in all of them, so written once."""
        known = self._around.get(index)
        if known is None:
            piece = {"content": SLOT} if self.kind == "chat" else SLOT
            chunk = self._chunk(self.choices[index], piece, None, None)
            before, after = chunk.rsplit(f'"{SLOT}"'.encode(), 1)
            known = self._around[index] = (before, after)
        return known

    def ended(self, line: dict[str, Any]) -> bytes:
        """The last chunk of one answer, and after the last answer the usage and the mark of the end."""
        choice = self._choice(line)
        choice.done = line
        more = {"routed_experts": line["routed_experts"]} if "routed_experts" in line else {}
        nothing: Any = {} if self.kind == "chat" else ""
        last = self._chunk(
            choice, nothing, FINISH[line["finish_reason"]], None, more, self._extension(choice)
        )
        if not self.is_complete:
            return last
        usage = b""
        if self.include_usage:
            usage = event({**self._head(stream=True), "choices": [], "usage": self._usage()})
        return last + usage + DONE

    def gather(self, line: dict[str, Any]) -> None:
        """Keep a delta or an end for `whole`."""
        choice = self._choice(line)
        if line["type"] == "done":
            choice.done = line
            return
        choice.text.append(line["text"])
        choice.logprobs.extend(line.get("logprobs") or ())

    def whole(self) -> dict[str, Any]:
        """The complete answers as one object."""
        choices = [self._whole(choice) for choice in self.choices]
        value = {**self._head(stream=False), "choices": choices, "usage": self._usage()}
        return value | self._extension(self.choices[0])

    def _whole(self, choice: _Choice) -> dict[str, Any]:
        assert choice.done is not None
        text = "".join(choice.text)
        value: dict[str, Any] = {
            "index": choice.index,
            "finish_reason": FINISH[choice.done["finish_reason"]],
            "logprobs": self._logprobs(choice, choice.logprobs or None),
        }
        if self.kind == "chat":
            value["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            value["text"] = text
        if "routed_experts" in choice.done:
            value["routed_experts"] = choice.done["routed_experts"]
        return value

    def _extension(self, choice: _Choice) -> dict[str, Any]:
        """What SGLang's clients read beside the choices: the routing of the first answer."""
        told = choice.done or {}
        if choice.index or "routed_experts" not in told:
            return {}
        return {"sglext": {"routed_experts": told["routed_experts"]}}

    def _choice(self, line: dict[str, Any]) -> _Choice:
        return self.choices[line.get("index", 0)]

    def _usage(self) -> dict[str, Any]:
        """The prompt once, and the tokens of all answers."""
        found = [choice.done["usage"] for choice in self.choices if choice.done is not None]
        completion = sum(one["completion_tokens"] for one in found)
        return usage_of(found[0]["prompt_tokens"], completion, found[0].get("reused_tokens", 0))

    def _chunk(
        self, choice: _Choice, piece: Any, reason: str | None, marks: Any,
        more: dict[str, Any] | None = None, extension: dict[str, Any] | None = None,
    ) -> bytes:  # fmt: skip
        value: dict[str, Any] = {
            "index": choice.index,
            "finish_reason": reason,
            "logprobs": marks,
            **(more or {}),
        }
        value["delta" if self.kind == "chat" else "text"] = piece
        usage = {"usage": None} if self.include_usage else {}
        return event({**self._head(stream=True), "choices": [value], **usage, **(extension or {})})

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

    def _logprobs(self, choice: _Choice, lines: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        if not lines:
            return None
        return _chat_logprobs(lines) if self.kind == "chat" else _text_logprobs(choice, lines)


def _text_logprobs(choice: _Choice, lines: list[dict[str, Any]]) -> dict[str, Any]:
    offsets = []
    for one in lines:
        offsets.append(choice.offset)
        choice.offset += len(one["token"])
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
    # The engine tells the bytes where the text does not: parts of a character.
    data = one["bytes"] if "bytes" in one else list(one["token"].encode())
    return {"token": one["token"], "logprob": one["logprob"], "bytes": data}
