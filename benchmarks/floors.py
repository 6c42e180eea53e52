"""What the short comparison must not fall below: ratios of our processor seconds to transformers' in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]
# 0.62 to 0.72 of the least of several runs (docs/explanation/performance.md, "What must not get slower"), taken with these
# instructions and without tiles; where there are others, neither side's rate is known so well.
INSTRUCTIONS, ELSEWHERE = "avx512_bf16", 0.65
FLOORS = {
    "turnout bf16": {"prefill": 1.1, "decode 1": 3.4, "layer 1": 1.8, "layer 128": 1.1},
    "turnout 8 bits": {"prefill": 1.6, "decode 1": 4.9, "layer 1": 3.2, "layer 128": 1.7},
    "turnout 4 bits": {"prefill": 1.5, "decode 1": 10.0, "layer 1": 6.0, "layer 128": 1.8},
}


def floor_share(isa: str, flags: frozenset[str]) -> float:
    """How much of the floors counts on a processor that has these instructions and tells these flags."""
    has_tiles = any(flag.startswith("amx_") for flag in flags)
    return 1.0 if isa == INSTRUCTIONS and not has_tiles else ELSEWHERE


def below(rows: Rows, share: float = 1.0) -> dict[tuple[str, str], str]:
    """In words, by contestant and metric, every ratio of ours that is below its floor."""
    found = {}
    for row in rows:
        floor = share * FLOORS.get(row["contestant"], {}).get(row["metric"], 0.0)
        if row["ratio"] < floor:
            key = row["contestant"], row["metric"]
            found[key] = f"{', '.join(key)}: {row['ratio']:.2f} times transformers, the floor is {floor:.2f}"
    return found


def held(measured: Callable[[], Rows], share: float = 1.0) -> tuple[Rows, int]:
    """The rows of a measurement, and 1 when a ratio is below its floor in it and in another one after it.

    A busy machine can take from one side alone for a minute; code that got slower is slower a minute later too.
    """
    rows = measured()
    low = below(rows, share)
    if not low:
        return rows, 0
    print("\n".join(["below a floor, so measured once more:", *low.values()]), flush=True)
    rows = measured()
    twice = [told for key, told in below(rows, share).items() if key in low]
    for told in twice:
        print(f"REGRESSION: {told}")
    return rows, int(bool(twice))
