"""What a load says: every figure is taken per layer and then averaged over the layers that were used.

Shapes: L expert layers, E experts, N domains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telemetry.cube import Cube

HOT = 2.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One expert of one layer with its load over the fair share."""

    layer: int
    expert: int
    ratio: float


def ratios_LE(load_LE: NDArray[np.int64]) -> NDArray[np.float64]:
    """Load over fair share; NaN in layers that no token reached."""
    if load_LE.size == 0:
        return np.zeros((0, 0))
    fair_L1 = load_LE.mean(-1, keepdims=True, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(fair_L1 > 0, load_LE / fair_L1, np.nan)


def max_violation(load_LE: NDArray[np.int64]) -> float | None:
    """MaxVio: the busiest expert's load over the mean load, minus one; 0 is perfect balance. None without tokens."""
    used = _used(load_LE)
    if used.size == 0:
        return None
    return float((used.max(-1) / used.mean(-1) - 1.0).mean())


def entropy(load_LE: NDArray[np.int64]) -> float | None:
    """Entropy of the load over log E: 1 where all carry the same, 0 where one carries everything."""
    used = _used(load_LE)
    if used.size == 0 or used.shape[1] < 2:
        return None
    share = used / used.sum(-1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return float((-(share * logs).sum(-1) / math.log(used.shape[1])).mean())


def hottest(cube: Cube, load_LE: NDArray[np.int64]) -> Cell | None:
    """The expert that carries most of its layer."""
    ratios = ratios_LE(load_LE)
    if ratios.size == 0 or np.isnan(ratios).all():
        return None
    layer, expert = divmod(int(np.nanargmax(ratios)), ratios.shape[1])
    return Cell(cube.shape.layers[layer], expert, round(float(ratios[layer, expert]), 3))


def asleep(cube: Cube, load_LE: NDArray[np.int64]) -> list[Cell]:
    """Experts that got no token in a layer that got some."""
    layers, experts = np.where((load_LE == 0) & (load_LE.sum(-1, keepdims=True) > 0))
    return [Cell(cube.shape.layers[at], int(expert), 0.0) for at, expert in zip(layers, experts, strict=True)]


def domain_shares(cube: Cube) -> dict[str, list[float]]:
    """For each domain the share of its assignments that each expert got, over all layers."""
    load_NE = cube.counts_PNLE.sum((0, 2))
    return {
        code: [round(float(value), 5) for value in load_NE[row] / load_NE[row].sum()]
        for row, code in enumerate(cube.shape.domains)
        if load_NE[row].sum() > 0
    }


def mapped_share(cube: Cube, domains: Iterable[str] | None = None) -> float | None:
    """The share to own experts of all domains together, or of some; None without tokens of theirs.

    It is `moe_core.routers.mapped`'s, mean over the expert layers.
    """
    codes = cube.shape.domains if domains is None else domains
    rows = [row for row, code in enumerate(cube.shape.domains) if code and code in codes]
    visits, hits = cube.reach_PN2[:, rows].sum((0, 1))
    return float(hits / visits) if visits else None


def mapped_share_by_domain(cube: Cube) -> dict[str, float]:
    """The share to own experts of each domain that had tokens."""
    shares = {code: mapped_share(cube, (code,)) for code in cube.shape.domains if code}
    return {code: round(share, 5) for code, share in shares.items() if share is not None}


def summary(cube: Cube) -> dict[str, Any]:
    """The figures of a whole cube, as JSON."""
    load_LE = cube.load_LE()
    hot = hottest(cube, load_LE)
    return {
        "max_vio": _rounded(max_violation(load_LE)),
        "entropy": _rounded(entropy(load_LE)),
        "hottest": None if hot is None else {"layer": hot.layer, "expert": hot.expert, "ratio": hot.ratio},
        "asleep": [{"layer": one.layer, "expert": one.expert} for one in asleep(cube, load_LE)[:100]],
        "num_asleep": len(asleep(cube, load_LE)),
        "domain_shares": domain_shares(cube),
        "mapped_share": _rounded(mapped_share(cube)),
        "mapped_share_by_domain": mapped_share_by_domain(cube),
    }


def _used(load_LE: NDArray[np.int64]) -> NDArray[np.float64]:
    if load_LE.size == 0:
        return np.zeros((0, 0))
    used: NDArray[np.float64] = load_LE[load_LE.sum(-1) > 0].astype(np.float64)
    return used


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
