"""Pieces of an arena lie apart, on cache lines, and stay while somebody holds them."""

from __future__ import annotations

import ctypes
import gc
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.kernels.cpu.arena import ALIGNMENT, ARENA_BYTES, Arena


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5 << 20) | st.just(ARENA_BYTES - 7) | st.just(ARENA_BYTES + 1), max_size=12))
def test_pieces_are_aligned_and_do_not_overlap(sizes: list[int]) -> None:
    arena = Arena()
    pieces = [(*arena.reserve(size), size) for size in sizes]
    spans = sorted((address, address + size) for _, address, size in pieces if size)
    assert all(address % ALIGNMENT == 0 for address, _ in spans)
    assert all(end <= following for (_, end), (following, _) in pairwise(spans))
    for memory, address, size in pieces:
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert first <= address
        assert address + size <= first + len(memory)


def test_a_piece_outlives_its_arena() -> None:
    arena = Arena()
    memory, address = arena.reserve(1 << 20)
    ctypes.memset(address, 7, 1 << 20)
    del arena
    gc.collect()
    Arena().reserve(1 << 20)
    assert memory is not None
    assert ctypes.string_at(address + (1 << 20) - 1, 1) == b"\x07"
