"""Arithmetic intensity of a kernel's main loop: operations of its matrix products for each byte that it loads.

Read from Triton's own code of the kernel (TTIR), where each product and each load names its shape, so it holds for what
is compiled and not for what was meant. Caches are not in it: it counts what a block asks for, not what memory delivers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

TENSOR = re.compile(r"tensor<([\dx]+)x(?:!tt\.ptr<)?(\w+)")
BITS = re.compile(r"\d+")


@dataclass(slots=True)
class _Loop:
    """What is done in one pass of a loop, loops within it left out."""

    depth: int
    flops: int = 0
    loaded_bytes: int = 0


def intensity(ttir: str) -> float | None:
    """Operations a byte in the loop with the most of them (an addition and a multiplication are two); None without any."""
    loops: list[_Loop] = []
    open_loops: list[_Loop] = []
    depth = 0
    for line in ttir.splitlines():
        if "scf.for" in line or "scf.while" in line:
            open_loops.append(_Loop(depth))
            loops.append(open_loops[-1])
        depth += line.count("{") - line.count("}")
        while open_loops and depth <= open_loops[-1].depth:
            open_loops.pop()
        if not open_loops:
            continue
        if re.search(r"\btt\.dot(?:_scaled)?\b", line):
            open_loops[-1].flops += _flops(line)
        elif re.search(r"\btt\.load\b", line):
            open_loops[-1].loaded_bytes += _loaded_bytes(line)
    busiest = max(loops, key=lambda loop: loop.flops, default=None)
    if busiest is None or not busiest.flops:
        return None
    return busiest.flops / busiest.loaded_bytes


def _flops(line: str) -> int:
    """2 · M · N · K: K is the left side's width, in pairs where that is of 4-bit floats."""
    sides, result = line.rsplit("->", 1)
    rows, columns = _shape(result)
    _, inner = _shape(sides.split(" : ", 1)[1])
    return 2 * rows * columns * inner * (2 if "lhs = e2m1" in line else 1)


def _loaded_bytes(line: str) -> int:
    found = TENSOR.search(line)
    if found is None:
        return 0
    bits = BITS.search(found[2])
    return math.prod(_shape(line)) * (int(bits[0]) if bits else 8) // 8


def _shape(text: str) -> tuple[int, ...]:
    found = TENSOR.search(text)
    return tuple(int(size) for size in found[1].split("x")) if found else ()
