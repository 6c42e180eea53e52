"""One row of a log: what it must look like, how repeats are told, on which side of the split it falls."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from moe_core.strict_json import StrictJsonError, loads

MAX_ROW_BYTES = 1 << 20
MAX_MESSAGES = 1000
HELD_OUT_PERCENT = 15
BYTES_A_TOKEN = 4
DOMAIN = re.compile(r"[a-z][a-z0-9_-]{1,11}")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Control characters that no log needs; PostgreSQL refuses NUL, terminals obey the rest.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufffd]")


class Message(TypedDict):
    """One turn."""

    role: str
    content: str


class Refused(Exception):
    """A row that is not taken: a code of `corpora.reasons` and the value in question."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail[:200]


@dataclass(frozen=True, slots=True)
class Row:
    """A row that was taken."""

    messages: tuple[Message, ...]
    domain: str | None

    def digest(self) -> bytes:
        """SHA-256 of the normalised text: equal for rows that differ only in case, width or white space."""
        text = "\x1f".join(
            f"{message['role']}\x1e{normalised(message['content'])}" for message in self.messages
        )
        return hashlib.sha256(text.encode()).digest()

    def about_tokens(self) -> int:
        """Tokens, to within about a half: four bytes of UTF-8 make one, in Latin letters and in Chinese alike."""
        return max(1, sum(len(message["content"].encode()) for message in self.messages) // BYTES_A_TOKEN)

    def as_line(self) -> bytes:
        """The row as training reads it: one JSON object and a newline."""
        plain = {"messages": list(self.messages), "domain": self.domain}
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def is_held_out(digest: bytes) -> bool:
    """The side of the split, by the hash alone, so that a row never changes sides when files are added."""
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def normalised(text: str) -> str:
    """Text without the differences that do not count."""
    # Most text is in this form already, and asking is far cheaper than converting.
    if not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split()).casefold()


def row_from_json(raw: bytes, default_domain: str | None) -> Row:
    """Read one line in OpenAI's chat shape; raise Refused."""
    try:
        data = loads(raw, max_bytes=MAX_ROW_BYTES)
    except StrictJsonError as error:
        # The sentence of the reason says "not JSON" itself.
        raise Refused(error.code, str(error).removeprefix("not JSON: ")) from None
    if not isinstance(data, dict):
        raise Refused("not_object")
    if "messages" not in data:
        raise Refused("no_messages", ", ".join(list(data)[:6]))
    messages = data["messages"]
    if not isinstance(messages, list) or not messages:
        raise Refused("empty_messages")
    if len(messages) > MAX_MESSAGES:
        raise Refused("too_many_messages", str(len(messages)))
    return row_of(tuple(_message(message) for message in messages), data.get("domain"), default_domain)


def row_of(messages: tuple[Message, ...], domain: Any, default_domain: str | None) -> Row:
    """Check what both formats share."""
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise Refused("no_user")
    if roles[-1] != "assistant":
        raise Refused("no_answer", roles[-1])
    return Row(messages, _domain(domain, default_domain))


def text_of(content: Any) -> str:
    """Return a message's text without space around it; raise Refused when it holds none or cannot be stored."""
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise Refused("not_text", type(content).__name__)
    text = content.strip()
    if not text:
        raise Refused("empty_text")
    if found := CONTROL.search(text):
        raise Refused("bad_text", f"U+{ord(found[0]):04X}")
    return text


def _message(message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise Refused("not_message")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refused("unknown_role", "" if role is None else str(role))
    return {"role": ROLES[role], "content": text_of(message.get("content"))}


def _part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise Refused("not_text", str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__)


def _domain(domain: Any, default: str | None) -> str | None:
    if domain is None or domain == "":
        return default or None
    if not isinstance(domain, str) or not DOMAIN.fullmatch(domain.strip().lower()):
        raise Refused("bad_domain", str(domain))
    return domain.strip().lower()
