"""The strict parser refuses what lenient readers let through, and agrees with json on all else."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.strict_json import StrictJsonError, loads

SENSIBLE_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
SENSIBLE_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | SENSIBLE_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SENSIBLE_TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(SENSIBLE_JSON, st.booleans())
def test_it_reads_back_what_json_wrote(value: object, ascii_only: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"[" * 65 + b"]" * 65, "too_deep"),
        (b"[" * 5_000, "too_deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "too_deep"),
        # Empty lists are looked at last, and in an object of their own.
        (b"[" * 63 + b'{"a":[]},' * 9 + b"[]" + b"]" * 63, "too_deep"),
        (b"NaN", "not_finite"),
        (b'{"a": -Infinity}', "not_finite"),
        (b"[1e999]", "not_finite"),
        (b"[-1e999]", "not_finite"),
        (b'"\\u0000"', "bad_text"),
        (b'{"\\u0000": 1}', "bad_text"),
        (b'["\\ud800"]', "bad_text"),
        (b'["\\udc00\\ud800"]', "bad_text"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a": {"b": 1, "\\u0062": 2}}', "duplicate_key"),
        (b'"\xff"', "not_utf8"),
        (b'"\xed\xa0\x80"', "not_utf8"),
        (b'"\x00"', "not_json"),
        (b"", "not_json"),
        (b"{} {}", "not_json"),
        (b"{'a': 1}", "not_json"),
        (b"9" * 5_000, "not_json"),
        (b'"' + b"x" * 4 * 1024 * 1024 + b'"', "too_large"),
    ],
)
def test_it_refuses(raw: bytes, code: str) -> None:
    with pytest.raises(StrictJsonError) as caught:
        loads(raw)
    assert caught.value.code == code


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


BRACKETED = st.text(st.sampled_from('[]{}"\\,:n')) | st.just('""') | st.just("\\\\")


@given(
    st.recursive(
        BRACKETED, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(BRACKETED, inner, max_size=3)
    ),
    st.sampled_from([None, 1]),
)
def test_its_depth_is_that_of_what_is_read_whatever_strings_hold(value: object, indent: int | None) -> None:
    raw, depth = json.dumps(value, indent=indent).encode(), depth_of(value)
    assert loads(raw, max_depth=depth) == value
    if depth:
        with pytest.raises(StrictJsonError, match="nests deeper"):
            loads(raw, max_depth=depth - 1)


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    value = {"text": "[" * 500 + '"\\' + "{" * 500}
    assert loads(json.dumps(value).encode()) == value


def test_sixty_four_levels_are_accepted() -> None:
    assert loads(b"[" * 64 + b"]" * 64) is not None


def test_a_surrogate_pair_is_one_character() -> None:
    assert loads(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_time_grows_no_faster_than_the_input_on_hostile_strings() -> None:
    def seconds(count: int) -> float:
        raw = b"[" * 80 + b'"' + b'\\"' * count
        started = time.process_time()
        with pytest.raises(StrictJsonError):
            loads(raw)
        return time.process_time() - started

    assert min(seconds(400_000) for _ in range(3)) < 8 * max(min(seconds(100_000) for _ in range(3)), 1e-3)
