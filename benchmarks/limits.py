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

from moe_core.kernels.cpu.library import Library

Clock = Literal["wall", "cpu"]
MEMORY_BYTES = 512 << 20
# A round of `multiply_registers` has 24 products of 64 bytes; in each of sixteen lanes 2 of bfloat16. Its loop over codes is
# slower than the kernels and would be no limit, so it is left out.
OPERATIONS_OF_ROUND = {"bf16": 24 * 16 * 2 * 2}
UNITS, ROUNDS = 16, 200_000


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
    for of_codes, (kind, count) in enumerate(OPERATIONS_OF_ROUND.items()):
        times = [
            _seconds(clock, threads, partial(native.multiply_registers, of_codes, UNITS, ROUNDS))
            for _ in range(repeats)
        ]
        operations[kind] = UNITS * ROUNDS * count / min(times)
    return Limits(threads, statistics.median(rates), max(rates), operations)


def _seconds(clock: Clock, threads: int, call: Callable[[], object]) -> float:
    """Seconds on the wall, or of the processors divided among the threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall if clock == "wall" else (time.process_time() - cpu) / threads


def bytes_of_a_token(weights_active: int, experts_active: int, bits: float) -> float:
    """Bytes of weights that one token needs: experts in `bits`, everything else in sixteen."""
    return (weights_active - experts_active) * 2 + experts_active * bits / 8
