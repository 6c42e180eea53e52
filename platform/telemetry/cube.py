"""Counts of routed tokens. A token counts once for each of its top-k experts in each layer; padding never.

Beside them stand visits and hits: how often a token passed an expert layer, and in how many of those it reached an expert of
its own domain, as `moe_core.routers.mapped` defines it. They cannot be had from the counts: a token that reaches two of its
own experts reaches them once.

Shapes: P phases (prefill, decode), N domains (row 0: none), L expert layers, E experts.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telemetry.latency import inflate

PHASES = ("prefill", "decode")
MAX_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class Shape:
    """What the axes of a cube are."""

    domains: tuple[str, ...] = ("",)
    layers: tuple[int, ...] = ()
    num_experts: int = 0

    @property
    def num_cells(self) -> int:
        """How many counts there are."""
        return len(PHASES) * len(self.domains) * len(self.layers) * self.num_experts

    def zeros(self) -> NDArray[np.int64]:
        """A cube in which nothing was counted."""
        return np.zeros((len(PHASES), len(self.domains), len(self.layers), self.num_experts), dtype=np.int64)

    def no_reach(self) -> NDArray[np.int64]:
        """Visits and hits of nothing."""
        return np.zeros((len(PHASES), len(self.domains), 2), dtype=np.int64)


@dataclass(slots=True)
class Cube:
    """Counts with the names of their axes."""

    shape: Shape
    counts_PNLE: NDArray[np.int64]
    reach_PN2: NDArray[np.int64]

    @classmethod
    def empty(cls, shape: Shape | None = None) -> Cube:
        """Nothing counted."""
        shape = shape or Shape()
        return cls(shape, shape.zeros(), shape.no_reach())

    @property
    def is_blank(self) -> bool:
        """Whether it belongs to no model with experts yet."""
        return self.shape.num_experts == 0

    def plus(self, other: Cube) -> Cube:
        """The sum; domains are matched by code, since a new revision may bring others.

        A cube of other layers or experts is another model: the later one stands alone.
        """
        if other.is_blank:
            return self
        if self.is_blank or (self.shape.layers, self.shape.num_experts) != (
            other.shape.layers,
            other.shape.num_experts,
        ):
            return other
        if self.shape.domains == other.shape.domains:
            return Cube(self.shape, self.counts_PNLE + other.counts_PNLE, self.reach_PN2 + other.reach_PN2)
        more = tuple(code for code in other.shape.domains if code not in self.shape.domains)
        shape = Shape(self.shape.domains + more, self.shape.layers, self.shape.num_experts)
        total = Cube.empty(shape)
        for part in (self, other):
            rows = [shape.domains.index(code) for code in part.shape.domains]
            total.counts_PNLE[:, rows] += part.counts_PNLE
            total.reach_PN2[:, rows] += part.reach_PN2
        return total

    def minus(self, earlier: Cube) -> Cube:
        """What was counted since `earlier`; everything when that was another engine's life."""
        if earlier.shape != self.shape:
            return self
        difference = self.counts_PNLE - earlier.counts_PNLE
        if difference.min(initial=0) < 0:
            return self
        return Cube(self.shape, difference, (self.reach_PN2 - earlier.reach_PN2).clip(min=0))

    def load_LE(self, phase: str = "", domain: str | None = None) -> NDArray[np.int64]:
        """Loads of all phases and domains, or of one of each (domain "" is: none named)."""
        counts = self.counts_PNLE if not phase else self.counts_PNLE[[PHASES.index(phase)]]
        if domain is not None:
            rows = [self.shape.domains.index(domain)] if domain in self.shape.domains else []
            counts = counts[:, rows]
        return counts.sum((0, 1))

    def pack(self) -> bytes:
        """Bytes for a column or a stream."""
        return _packed(self.counts_PNLE)

    def pack_reach(self) -> bytes:
        """Visits and hits as bytes."""
        return _packed(self.reach_PN2)

    def heading(self) -> dict[str, Any]:
        """The axes as JSON."""
        return {
            "phases": list(PHASES),
            "domains": list(self.shape.domains),
            "layers": list(self.shape.layers),
            "num_experts": self.shape.num_experts,
        }


def shape_of(heading: dict[str, Any]) -> Shape:
    """Read the axes.

    Raises:
        ValueError: for axes that are none, or too many cells.
    """
    if list(heading.get("phases") or PHASES) != list(PHASES):
        raise ValueError(f"phases {heading.get('phases')!r} are not {PHASES}")
    shape = Shape(
        tuple(str(code)[:64] for code in heading.get("domains") or ("",)),
        tuple(int(layer) for layer in heading.get("layers") or ()),
        int(heading.get("num_experts") or 0),
    )
    if shape.num_experts < 0 or shape.num_cells > MAX_CELLS:
        raise ValueError(f"{shape.num_cells} cells are more than {MAX_CELLS}")
    return shape


def unpack(shape: Shape, data: bytes | memoryview, reach: bytes | memoryview = b"") -> Cube:
    """Read a packed cube; rows from before visits and hits were counted have none.

    Raises:
        ValueError: for bytes of another shape.
    """
    if not data:
        return Cube.empty(shape)
    counts = _unpacked(data, shape.zeros())
    return Cube(shape, counts, _unpacked(reach, shape.no_reach()) if reach else shape.no_reach())


def _packed(array: NDArray[np.int64]) -> bytes:
    return zlib.compress(array.astype("<u8").tobytes(), 1)


def _unpacked(data: bytes | memoryview, like: NDArray[np.int64]) -> NDArray[np.int64]:
    raw = inflate(bytes(data), 8 * like.size)
    return np.frombuffer(raw, dtype="<u8").astype(np.int64).reshape(like.shape)
