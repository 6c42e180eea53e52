"""Checksums of pieces are XXH64's, and parts that are written in whole pieces lie where each was to."""

from __future__ import annotations

import ctypes
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.kernels.cpu import panel_pieces
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.panel_pieces import checksum, write_joined

PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
FULL = 2**64 - 1


def rotated(value: int, bits: int) -> int:
    value &= FULL
    return (value << bits | value >> (64 - bits)) & FULL


def with_word(total: int, word: int) -> int:
    return rotated(total + word * PRIMES[1], 31) * PRIMES[0] & FULL


def xxh64(data: bytes) -> int:
    """The specification, in plain numbers."""
    p1, p2, p3, p4, p5 = PRIMES
    whole = len(data) // 32 * 32
    total = p5
    if whole:
        sums = [p1 + p2, p2, 0, -p1]
        for start in range(0, whole, 8):
            lane = start // 8 % 4
            sums[lane] = with_word(sums[lane], int.from_bytes(data[start : start + 8], "little"))
        total = sum(rotated(one, bits) for one, bits in zip(sums, (1, 7, 12, 18), strict=True))
        for one in sums:
            total = (total ^ with_word(0, one)) * p1 + p4 & FULL
    total = total + len(data) & FULL
    rest = data[whole:]
    while len(rest) >= 8:
        total = rotated(total ^ with_word(0, int.from_bytes(rest[:8], "little")), 27) * p1 + p4 & FULL
        rest = rest[8:]
    if len(rest) >= 4:
        total = rotated(total ^ int.from_bytes(rest[:4], "little") * p1 & FULL, 23) * p2 + p3 & FULL
        rest = rest[4:]
    for byte in rest:
        total = rotated(total ^ byte * p5 & FULL, 11) * p1 & FULL
    total = (total ^ total >> 33) * p2 & FULL
    total = (total ^ total >> 29) * p3 & FULL
    return total ^ total >> 32


def native_sum(data: bytes) -> int:
    memory = ctypes.create_string_buffer(data, len(data) + 1)
    return int.from_bytes(checksum(ctypes.addressof(memory), len(data)), "little")


@pytest.mark.skipif(library() is None, reason="the kernels are not compiled")
@pytest.mark.parametrize(
    ("data", "wanted"), [(b"", 0xEF46DB3751D8E999), (b"a", 0xD24EC4F1A98C6E5B), (b"abc", 0x44BC2CF5AD770999)]
)
def test_it_says_what_the_specification_publishes(data: bytes, wanted: int) -> None:
    assert xxh64(data) == wanted
    assert native_sum(data) == wanted


@pytest.mark.skipif(library() is None, reason="the kernels are not compiled")
@given(st.binary(max_size=200))
def test_it_is_the_specifications_for_any_length(data: bytes) -> None:
    assert native_sum(data) == xxh64(data)


@pytest.mark.skipif(library() is None, reason="the kernels are not compiled")
def test_any_bit_that_changes_is_found() -> None:
    data = os.urandom(4096 + 13)
    wanted = native_sum(data)
    for place in range(0, 8 * len(data), 97):
        other = bytearray(data)
        other[place // 8] ^= 1 << place % 8
        assert native_sum(bytes(other)) != wanted


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=150)), max_size=12))
def test_parts_lie_where_each_was_to_and_gaps_are_zeros(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("parts") / "file"
    wanted, told, whole = b"", [], panel_pieces.PIECE_BYTES
    for gap, data in parts:
        wanted += bytes(gap)
        told.append((memoryview(data), len(wanted)))
        wanted += data
    panel_pieces.PIECE_BYTES = 64
    try:
        with path.open("wb") as file:
            os.truncate(file.fileno(), len(wanted))
            write_joined(file.fileno(), told)
    finally:
        panel_pieces.PIECE_BYTES = whole
    assert path.read_bytes() == wanted
