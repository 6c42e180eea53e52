"""The roofline of this machine, measured: bytes read from memory and products in registers, on one thread and on two."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from moe_core.kernels.cpu.native import Library

Clock = Literal["wall", "cpu"]
MEMORY_BYTES = 512 << 20
# A round of `multiply_registers` has 24 products of 64 bytes, 2 of bfloat16 or 4 of codes in each of sixteen lanes; in tiles
# four products of 16 rows of 64 bytes.
VECTORS = {"bf16": (0, 24 * 16 * 2 * 2), "int8": (1, 24 * 16 * 4 * 2)}
TILES = {"bf16": (2, 4 * 16 * 16 * 32 * 2), "int8": (3, 4 * 16 * 16 * 64 * 2)}
UNITS, ROUNDS = 16, 100_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What so many threads reach: the median and the best of the repeats."""

    threads: int
    read_gb_s: float
    best_read_gb_s: float
    best_operations_s: dict[str, float]


def measure(native: Library, threads: int, repeats: int, clock: Clock) -> Limits:
    """Read memory that no cache holds and multiply in registers, `repeats` times each, by the clock of the comparison."""
    native.set_threads(threads)
    memory = mmap.mmap(-1, MEMORY_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    bytes_N = torch.frombuffer(memory, dtype=torch.uint8)
    bytes_N.fill_(1)
    rates = [
        MEMORY_BYTES
        / 1e9
        / _seconds(clock, threads, lambda: native.read_memory(bytes_N.data_ptr(), MEMORY_BYTES))
        for _ in range(repeats)
    ]
    operations = {}
    for name, (kind, count) in products(native.isa, cpu_flags()).items():
        times = [
            _seconds(clock, threads, partial(native.multiply_registers, kind, UNITS, ROUNDS))
            for _ in range(repeats)
        ]
        operations[name] = UNITS * ROUNDS * count / min(times)
    return Limits(threads, statistics.median(rates), max(rates), operations)


def products(isa: str, flags: frozenset[str]) -> dict[str, tuple[int, int]]:
    """Which loop finds the limit of each precision here, and the operations of its round.

    Without VNNI there is no loop over codes that is a limit, so none is named.
    """
    found = dict(VECTORS) if isa in ("avx512_vnni", "avx512_bf16") else {"bf16": VECTORS["bf16"]}
    return found | {name: TILES[name] for name in TILES if f"amx_{name}" in flags and "int8" in found}


def cpu_flags() -> frozenset[str]:
    """What the kernel says that the processor has."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return next(frozenset(line.split()) for line in file if line.startswith("flags"))
    except (OSError, StopIteration):
        return frozenset()


def _seconds(clock: Clock, threads: int, call: Callable[[], object]) -> float:
    """Seconds on the wall, or of the processors divided among the threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall if clock == "wall" else (time.process_time() - cpu) / threads
