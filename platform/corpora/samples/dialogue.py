"""One question and its answer, and the cleaning that every source of sample logs shares."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MIN_ANSWER_CHARS = 40
MAX_ANSWER_CHARS = 1200

_SPACES = re.compile(r"[ \t\r\f\v]+")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)])\s+")
_NOT_WORD = re.compile(r"[\W_]+", re.UNICODE)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A short conversation: alternating user and assistant turns, user first."""

    turns: tuple[str, ...]
    domain: str

    def as_json(self) -> dict[str, object]:
        """The OpenAI chat shape, with the domain beside the messages."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(self.turns)]
        return {"messages": messages, "domain": self.domain}

    def fingerprint(self) -> str:
        """What two copies of one answer share, however they are spaced or punctuated."""
        words = _NOT_WORD.sub("", " ".join(self.turns[1::2]).casefold())
        return hashlib.sha256(words.encode()).hexdigest()


def without_repeats(dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
    """Each answer once, the first time that it is met."""
    seen: set[str] = set()
    for dialogue in dialogues:
        mark = dialogue.fingerprint()
        if mark in seen:
            continue
        seen.add(mark)
        yield dialogue


def unwrapped(text: str) -> str:
    """Join hard-wrapped lines into paragraphs; lists keep one line an item."""
    paragraphs = (_unwrapped_paragraph(part) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if part)


def _unwrapped_paragraph(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        clean = _SPACES.sub(" ", line).strip()
        if not clean:
            continue
        if not lines or _BULLET.match(line):
            lines.append(_BULLET.sub("- ", clean) if _BULLET.match(line) else clean)
        else:
            lines[-1] += f" {clean}"
    return "\n".join(lines)


def cut_at_sentence(text: str, limit: int = MAX_ANSWER_CHARS) -> str:
    """The longest run of whole sentences or list items within `limit` characters."""
    if len(text) <= limit:
        return text
    head = text[:limit]
    end = max(head.rfind(mark) for mark in (". ", ".\n", "!\n", "? ", "\n\n", "\n- "))
    return head[: end + 1].strip() if end >= MIN_ANSWER_CHARS else ""


def chosen(options: tuple[str, ...], key: str) -> str:
    """One of the options, always the same for the same key."""
    return options[int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % len(options)]
