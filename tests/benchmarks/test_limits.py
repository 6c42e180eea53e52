"""The roofline's loops really are limits, and name only what the processor has."""

from __future__ import annotations

import pytest

from benchmarks.limits import TILES, VECTORS, cpu_flags, measure, products
from moe_core.kernels.cpu.native import library


def test_products_of_codes_are_named_where_the_processor_has_them() -> None:
    assert products("avx2", frozenset()) == {"bf16": VECTORS["bf16"]}
    assert products("avx512_vnni", frozenset()) == VECTORS


def test_tiles_take_the_place_of_vectors() -> None:
    flags = frozenset({"amx_tile", "amx_bf16", "amx_int8"})
    assert products("avx512_bf16", flags) == TILES


@pytest.mark.skipif(library() is None, reason="the CPU kernels are not compiled")
def test_eight_bits_are_multiplied_faster_than_sixteen() -> None:
    native = library()
    assert native is not None
    limits = measure(native, 1, 3, "cpu")
    assert limits.best_read_gb_s >= limits.read_gb_s > 0.1
    if "int8" in products(native.isa, cpu_flags()):
        # Twice as many to an instruction; a loop that keeps its sums in memory would not even be as fast.
        assert limits.best_operations_s["int8"] > 1.3 * limits.best_operations_s["bf16"]
