"""The decoder block as a track diagram: the dense one beside the one with experts. Coordinates only; SVG is drawn by
the template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_DRAWN = 16
LEFT, RIGHT = 412.0, 712.0
RAIL_X = (LEFT + RIGHT) / 2
SHARED_X = 356.0
EXPERT_Y = 78.0
FORK_Y, MERGE_Y = 138.0, 20.0


@dataclass(frozen=True, slots=True)
class Station:
    """One expert as drawn: where it stands, and whether this picture's token calls at it."""

    x: float
    label: str
    is_lit: bool
    path: str


@dataclass(frozen=True, slots=True)
class Diagram:
    """Everything that the template draws."""

    shape: dict[str, Any]
    stations: list[Station]
    shared: Station | None
    num_hidden: int


def diagram(shape: dict[str, Any]) -> Diagram:
    """Lay out one station per expert, sixteen at most; the rest is told in words."""
    drawn = min(shape["num_experts"], MAX_DRAWN)
    gap = (RIGHT - LEFT) / max(1, drawn - 1) if drawn > 1 else 0.0
    lit = _lit(drawn, min(shape["top_k"], drawn))
    stations = []
    for index in range(drawn):
        x = LEFT + index * gap if drawn > 1 else RAIL_X
        stations.append(Station(x, str(index), index in lit, _route(x)))
    shared = Station(SHARED_X, "S", True, _route(SHARED_X)) if shape["num_shared_experts"] else None
    return Diagram(shape, stations, shared, shape["num_experts"] - drawn)


def _lit(drawn: int, top_k: int) -> set[int]:
    """Which stations the picture's token calls at: spread evenly."""
    return {round((index + 0.5) * drawn / top_k - 0.5) for index in range(top_k)}


def _route(x: float) -> str:
    """A smooth line from the router up to the station and on to the sum."""
    return (
        f"M{RAIL_X:.0f} {FORK_Y:.0f}C{RAIL_X:.0f} 112 {x:.1f} 122 {x:.1f} {EXPERT_Y:.0f}"
        f"C{x:.1f} 36 {RAIL_X:.0f} 46 {RAIL_X:.0f} {MERGE_Y:.0f}"
    )
