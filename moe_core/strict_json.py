"""A JSON parser for bytes from strangers: bounded in size and depth, and free of what only some readers accept.

Standard library only, so that any process may import it.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any

MAX_DEPTH = 64
MAX_BYTES = 4 * 1024 * 1024

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_NOT_BRACKETS_OR_QUOTES = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class StrictJsonError(ValueError):
    """The bytes are not JSON that Turnout accepts; `code` says which rule they broke.

    Codes: too_large, not_utf8, too_deep, not_json, duplicate_key, not_finite, bad_text.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def loads(raw: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Parse `raw` as JSON.

    Raises:
        StrictJsonError: for more than `max_bytes`, nesting deeper than `max_depth`, text that is not UTF-8, NaN,
            Infinity or a number too large for a float, a repeated key, NUL or a lone surrogate in any string.
    """
    if len(raw) > max_bytes:
        raise StrictJsonError("too_large", f"the JSON has {len(raw)} bytes; at most {max_bytes} are accepted")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError("not_utf8", f"byte {error.start} is not UTF-8") from None
    _check_depth(raw, max_depth)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except StrictJsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise StrictJsonError("not_json", f"not JSON: {_reason(error)}") from None
    # Only an escape can spell NUL or a lone surrogate: raw ones are refused by the decoder above.
    if b"\\u" in raw:
        _check_text(value)
    return value


def _check_depth(raw: bytes, max_depth: int) -> None:
    if raw.count(b"[") + raw.count(b"{") <= max_depth:
        return
    if b"\\" in raw:
        raw = _ESCAPED.sub(b"", raw)
    # Two quotes with nothing between them change nothing for what follows. Every second of the rest's parts is in a string.
    parts = raw.translate(None, _NOT_BRACKETS_OR_QUOTES).replace(b'""', b"").split(b'"')
    brackets = b"".join(parts[::2])
    # What opens and closes at once is at most two levels deeper than what is left around it: of long flat lists, nothing.
    left = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if _deepest(left) + 2 > max_depth and _deepest(brackets) > max_depth:
        raise StrictJsonError("too_deep", f"the JSON nests deeper than {max_depth} levels")


def _deepest(brackets: bytes) -> int:
    return max(accumulate((_STEP[bracket] for bracket in brackets), initial=0))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise StrictJsonError("duplicate_key", f"the key {repeated[:80]!r} appears twice in one object")


def _refuse_constant(name: str) -> float:
    raise StrictJsonError("not_finite", f"{name} is not a JSON number")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if math.isfinite(number):
        return number
    raise StrictJsonError("not_finite", f"the number {digits[:40]} is too large")


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise StrictJsonError("bad_text", "a string holds NUL or half a surrogate pair")
    elif isinstance(value, dict):
        for key, member in value.items():
            _check_text(key)
            _check_text(member)
    elif isinstance(value, list):
        for member in value:
            _check_text(member)


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "a number has too many digits" if isinstance(error, ValueError) else "it nests too deeply"
