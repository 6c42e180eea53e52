"""The roofline of this machine, measured: bytes read from memory and products in registers, on one thread and on two."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from moe_core.kernels.cpu.arena import address_of, own_memory
from moe_core.kernels.cpu.native import Library

Clock = Literal["wall", "cpu"]
MEMORY_BYTES = 512 << 20
# A round of `multiply_registers` has 24 products of 64 bytes, 2 of bfloat16 or 4 of codes in each of sixteen lanes; in tiles
# four products of 16 rows of 64 bytes.
VECTORS = {"bf16": (0, 24 * 16 * 2 * 2), "int8": (1, 24 * 16 * 4 * 2)}
TILES = {"bf16": (2, 4 * 16 * 16 * 32 * 2), "int8": (3, 4 * 16 * 16 * 64 * 2)}
UNITS, ROUNDS = 16, 100_000
# Sets of ours that multiply codes.
WITH_CODES = ("avx512_vnni", "avx512_bf16", "amx")


@dataclass(frozen=True, slots=True)
class Limits:
    """What so many threads reach: the median and the best of all readings, and how much of what was read lay in huge pages.

    `huge_share` is the least of all times that it was measured; None where the system does not tell.
    """

    threads: int
    read_gb_s: float
    best_read_gb_s: float
    best_operations_s: dict[str, float]
    readings_gb_s: tuple[float, ...] = ()
    huge_share: float | None = None


def measure(native: Library, threads: int, repeats: int, clock: Clock) -> Limits:
    """Read memory that no cache holds and multiply in registers, `repeats` times each, by the clock of the comparison.

    The memory is what weights lie in: private, in huge pages where the kernel gives them; each megabyte is one thread's.
    """
    native.set_threads(threads)
    memory = own_memory(MEMORY_BYTES)
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
    return Limits(
        threads, statistics.median(rates), max(rates), operations, tuple(rates),
        huge_share(address_of(memory), MEMORY_BYTES),
    )  # fmt: skip


def pooled(measured: Sequence[Limits]) -> Limits:
    """Several times that the same threads were measured, as one: a machine that others use is not the same for an hour."""
    readings = tuple(reading for one in measured for reading in one.readings_gb_s or (one.best_read_gb_s,))
    shares = [one.huge_share for one in measured if one.huge_share is not None]
    operations = {
        name: max(one.best_operations_s[name] for one in measured) for name in measured[0].best_operations_s
    }
    return Limits(
        measured[0].threads, statistics.median(readings), max(readings), operations, readings,
        min(shares, default=None),
    )  # fmt: skip


def huge_share(address: int, num_bytes: int) -> float | None:
    """The share of the resident pages at an address that are huge, of whole mappings; None where nobody tells."""
    kilobytes, inside = {"Rss:": 0, "AnonHugePages:": 0}, False
    with contextlib.suppress(OSError), open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            word, *rest = line.split()
            if not word.endswith(":"):
                first, last = (int(end, 16) for end in word.split("-"))
                inside = first < address + num_bytes and address < last
            elif inside and word in kilobytes:
                kilobytes[word] += int(rest[0])
    return kilobytes["AnonHugePages:"] / kilobytes["Rss:"] if kilobytes["Rss:"] else None


def memory_read(share: float | None) -> str:
    """Which memory was read, in words."""
    told = "of which pages is not told" if share is None else f"{share:.0%} in huge pages"
    return f"{MEMORY_BYTES >> 20} MB, private, {told}"


def products(isa: str, flags: frozenset[str]) -> dict[str, tuple[int, int]]:
    """Which loop finds the limit of each precision here, and the operations of its round.

    Without VNNI there is no loop over codes that is a limit, so none is named.
    """
    found = dict(VECTORS) if isa in WITH_CODES else {"bf16": VECTORS["bf16"]}
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
