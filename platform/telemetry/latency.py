"""Latencies as histograms: they add up over engines and time, where percentiles do not.

Shapes: B buckets. Bucket 0 holds up to FIRST_MS, each next one 1.2 times more, the last one everything above.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FIRST_MS = 0.1
GROWTH = 1.2
NUM_BUCKETS = 84
EDGES_MS = tuple(FIRST_MS * GROWTH**index for index in range(NUM_BUCKETS))

Histogram = NDArray[np.int64]


def empty() -> Histogram:
    """No latency yet."""
    return np.zeros(NUM_BUCKETS, dtype=np.int64)


def bucket_of(value_ms: float) -> int:
    """The bucket of one latency."""
    if value_ms <= FIRST_MS:
        return 0
    return min(NUM_BUCKETS - 1, math.ceil(math.log(value_ms / FIRST_MS) / math.log(GROWTH) - 1e-9))


def add(histogram: Histogram, values_ms: Iterable[float]) -> None:
    """Count latencies in place."""
    for value in values_ms:
        histogram[bucket_of(value)] += 1


def percentile(histogram: Histogram, share: float) -> float | None:
    """The latency in ms below which `share` of them lie, interpolated in its bucket; None for no latency."""
    total = int(histogram.sum())
    if total == 0:
        return None
    wanted, seen = share * total, 0
    for index, count in enumerate(histogram):
        if count and seen + count >= wanted:
            low = EDGES_MS[index - 1] if index else 0.0
            return round(low + (EDGES_MS[index] - low) * max(0.0, wanted - seen) / int(count), 2)
        seen += int(count)
    return EDGES_MS[-1]


def pack(histogram: Histogram) -> bytes:
    """Bytes for a column or a stream."""
    return zlib.compress(histogram.astype("<u8").tobytes(), 1)


def unpack(data: bytes | memoryview) -> Histogram:
    """The histogram in a column; an empty one for none.

    Raises:
        ValueError: for bytes of another shape.
    """
    if not data:
        return empty()
    raw = inflate(bytes(data), 8 * NUM_BUCKETS)
    return np.frombuffer(raw, dtype="<u8").astype(np.int64)


def inflate(data: bytes, expected: int) -> bytes:
    """Inflate to exactly the expected size, never more.

    Raises:
        ValueError: for anything else.
    """
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, expected + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(raw) != expected:
        raise ValueError(f"{len(raw)} bytes came out, {expected} were expected")
    return raw
