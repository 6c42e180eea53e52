"""The roofline's loops really are limits, and name only what the processor has."""

from __future__ import annotations

import mmap

import pytest

from benchmarks.limits import (
    TILES,
    VECTORS,
    Limits,
    cpu_flags,
    huge_share,
    measure,
    memory_read,
    pooled,
    products,
)
from moe_core.kernels.cpu.arena import address_of
from moe_core.kernels.cpu.build import X86_SETS
from moe_core.kernels.cpu.native import library


def test_products_of_codes_are_named_where_the_processor_has_them() -> None:
    assert products("avx2", frozenset()) == {"bf16": VECTORS["bf16"]}
    assert products("avx512_vnni", frozenset()) == VECTORS


def test_tiles_take_the_place_of_vectors() -> None:
    flags = frozenset({"amx_tile", "amx_bf16", "amx_int8"})
    assert products("avx512_bf16", flags) == TILES
    assert products("amx", flags) == TILES


def test_every_set_that_multiplies_codes_has_a_limit_for_them() -> None:
    with_codes = {name for name, flags in X86_SETS.items() if "-mavx512vnni" in flags}
    assert "amx" in with_codes and {isa for isa in X86_SETS if "int8" in products(isa, frozenset())} == with_codes


@pytest.mark.skipif(library() is None, reason="the CPU kernels are not compiled")
def test_eight_bits_are_multiplied_faster_than_sixteen() -> None:
    native = library()
    assert native is not None
    limits = measure(native, 1, 3, "cpu")
    assert limits.best_read_gb_s >= limits.read_gb_s > 0.1
    if "int8" in products(native.isa, cpu_flags()):
        # Twice as many to an instruction; a loop that keeps its sums in memory would not even be as fast.
        assert limits.best_operations_s["int8"] > 1.3 * limits.best_operations_s["bf16"]


def _gives_huge_pages() -> bool:
    """Whether the kernel gives them to who asks for 64 MB of private memory now."""
    memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory.write(bytes(len(memory)))
    return (huge_share(address_of(memory), len(memory)) or 0.0) > 0.9


@pytest.mark.skipif(
    library() is None or not hasattr(mmap, "MADV_HUGEPAGE"), reason="no kernels, or no huge pages"
)
def test_the_memory_that_is_read_lies_in_huge_pages_as_weights_do() -> None:
    native = library()
    assert native is not None
    if not _gives_huge_pages():
        pytest.skip("the kernel gives no huge pages")
    share = measure(native, 1, 1, "cpu").huge_share
    # Pages of a shared mapping are never huge; of 512 MB of private ones a few may be small.
    assert share is not None and share > 0.5


def test_limits_that_were_measured_again_count_together() -> None:
    first = Limits(2, 10.0, 11.0, {"bf16": 1e9, "int8": 2e9}, (9.0, 10.0, 11.0), 1.0)
    later = Limits(2, 20.0, 21.0, {"bf16": 3e9, "int8": 1e9}, (19.0, 20.0, 21.0), 0.75)
    found = pooled([first, later])
    assert (found.threads, found.read_gb_s, found.best_read_gb_s) == (2, 15.0, 21.0)
    assert found.best_operations_s == {"bf16": 3e9, "int8": 2e9}
    assert len(found.readings_gb_s) == 6 and found.huge_share == 0.75
    assert memory_read(found.huge_share) == "512 MB, private, 75% in huge pages"
