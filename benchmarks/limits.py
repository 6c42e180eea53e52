"""The roofline of this machine, measured: bytes read from memory and products in registers, on one thread and on two."""

from __future__ import annotations

import mmap
import statistics
import time
from dataclasses import dataclass

import torch

from moe_core.kernels.cpu.library import Library

MEMORY_BYTES = 512 << 20
# A round of `multiply_registers` has 24 products of 64 bytes; in each of sixteen lanes 2 of bfloat16, or 4 of codes.
OPERATIONS_OF_ROUND = {"bf16": 24 * 16 * 2 * 2, "int8": 24 * 16 * 4 * 2}
UNITS, ROUNDS = 16, 200_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What so many threads reach: the median and the best of the repeats."""

    threads: int
    read_gb_s: float
    best_read_gb_s: float
    best_operations_s: dict[str, float]


def measure(native: Library, threads: int, repeats: int = 5) -> Limits:
    """Read fresh memory and multiply in registers, `repeats` times each."""
    native.set_threads(threads)
    memory = mmap.mmap(-1, MEMORY_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    bytes_N = torch.frombuffer(memory, dtype=torch.uint8)
    bytes_N.fill_(1)
    rates = [
        MEMORY_BYTES / 1e9 / _seconds(lambda: native.read_memory(bytes_N.data_ptr(), MEMORY_BYTES))
        for _ in range(repeats)
    ]
    operations = {
        kind: max(
            UNITS * ROUNDS * count / _seconds(lambda i=i: native.multiply_registers(i, UNITS, ROUNDS))
            for _ in range(repeats)
        )
        for i, (kind, count) in enumerate(OPERATIONS_OF_ROUND.items())
    }
    return Limits(threads, statistics.median(rates), max(rates), operations)


def _seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def bytes_of_a_token(weights_active: int, experts_active: int, bits: float) -> float:
    """Bytes of weights that one token needs: experts in `bits`, everything else in sixteen."""
    return (weights_active - experts_active) * 2 + experts_active * bits / 8
