"""What the short comparison must not fall below: ratios of our processor seconds to transformers' in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]
Floors = dict[str, dict[str, float]]
# 0.62 to 0.72 of the least of several runs (docs/explanation/performance.md, "What must not get slower"): with vectors of
# bfloat16 and without tiles on either side, and with tiles on both. Elsewhere neither side's rate is known so well.
VECTORS: Floors = {
    "turnout bf16": {"prefill": 1.1, "decode 1": 3.4, "layer 1": 1.8, "layer 128": 1.1},
    "turnout 8 bits": {"prefill": 1.6, "decode 1": 4.9, "layer 1": 3.2, "layer 128": 1.7},
    "turnout 4 bits": {"prefill": 1.5, "decode 1": 10.0, "layer 1": 6.0, "layer 128": 1.8},
}
TILES: Floors = {
    "turnout bf16": {"prefill": 1.8, "decode 1": 2.6, "layer 1": 1.65, "layer 128": 1.4},
    "turnout 8 bits": {"prefill": 2.0, "decode 1": 5.3, "layer 1": 3.0, "layer 128": 1.65},
    "turnout 4 bits": {"prefill": 1.35, "decode 1": 8.2, "layer 1": 5.4, "layer 128": 2.0},
}
ELSEWHERE = 0.65


def floors_of(isa: str, flags: frozenset[str]) -> Floors:
    """What counts where our kernels use this instruction set and the processor tells these flags."""
    if isa == "amx":
        return TILES
    if isa == "avx512_bf16" and not any(flag.startswith("amx_") for flag in flags):
        return VECTORS
    return {name: {metric: ELSEWHERE * floor for metric, floor in rows.items()} for name, rows in VECTORS.items()}


def below(rows: Rows, floors: Floors = VECTORS) -> dict[tuple[str, str], str]:
    """In words, by contestant and metric, every ratio of ours that is below its floor."""
    found = {}
    for row in rows:
        floor = floors.get(row["contestant"], {}).get(row["metric"], 0.0)
        if row["ratio"] < floor:
            key = row["contestant"], row["metric"]
            found[key] = f"{', '.join(key)}: {row['ratio']:.2f} times transformers, the floor is {floor:.2f}"
    return found


def held(measured: Callable[[], Rows], floors: Floors = VECTORS) -> tuple[Rows, int]:
    """The rows of a measurement, and 1 when a ratio is below its floor in it and in another one after it.

    A busy machine can take from one side alone for a minute; code that got slower is slower a minute later too.
    """
    rows = measured()
    low = below(rows, floors)
    if not low:
        return rows, 0
    print("\n".join(["below a floor, so measured once more:", *low.values()]), flush=True)
    rows = measured()
    twice = [told for key, told in below(rows, floors).items() if key in low]
    for told in twice:
        print(f"REGRESSION: {told}")
    return rows, int(bool(twice))
