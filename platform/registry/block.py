"""The decoder block as a track diagram: the dense one beside the one with experts. Coordinates and words; the SVG is
drawn by the template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common import figures
from moe_core.spec import ModelSpec
from registry.gates import GATES

MAX_DRAWN = 16
LEFT, RIGHT = 412.0, 712.0
RAIL_X = (LEFT + RIGHT) / 2
SHARED_X = 356.0
EXPERT_Y = 78.0
FORK_Y, MERGE_Y = 138.0, 20.0
# Experts of several kinds are as broad as their width beside the widest; 16 of them leave 20 between two middles.
BROADEST, NARROWEST = 17.0, 4.0


@dataclass(frozen=True, slots=True)
class Station:
    """One expert as drawn: where it stands, and whether this picture's token calls at it."""

    x: float
    label: str
    is_lit: bool
    path: str
    # Its kind, where the experts of the layer differ; "" where they are all alike.
    kind: str = ""
    breadth: float = 0.0

    @property
    def left(self) -> float:
        """The left edge of a broad one."""
        return self.x - self.breadth / 2


@dataclass(frozen=True, slots=True)
class Diagram:
    """Everything that the template draws."""

    shape: dict[str, Any]
    stations: list[Station]
    shared: Station | None
    num_hidden: int

    @property
    def words(self) -> dict[str, Any]:
        """The numbers as people write them."""
        named = ("dense_width", "expert_width", "narrowest_width")
        return {**self.shape, **{name: figures.number(self.shape[name]) for name in named}}

    @property
    def is_uneven(self) -> bool:
        """Whether some feed-forwards are narrower than others."""
        return bool(self.shape["narrowest_width"] != self.shape["expert_width"])

    @property
    def caption(self) -> str:
        """How many experts there are, and how wide."""
        count = self.shape["num_experts"]
        if self.is_uneven:
            return _("%(num_experts)s experts, %(narrowest_width)s to %(expert_width)s wide") % self.words
        if self.shape["kinds"]:
            return _("%(num_experts)s experts, those with a feed-forward %(expert_width)s wide") % self.words
        sentence = ngettext(
            "%(num_experts)s expert, %(expert_width)s wide",
            "%(num_experts)s experts, each %(expert_width)s wide",
            count,
        )
        return sentence % self.words

    @property
    def hidden(self) -> str:
        """How many experts are not drawn."""
        if self.shape["kinds"]:
            words = ngettext("and %(count)s more", "and %(count)s more", self.num_hidden)
        else:
            words = ngettext("and %(count)s more like it", "and %(count)s more like them", self.num_hidden)
        return words % {"count": self.num_hidden}

    @property
    def gate(self) -> str:
        """The gate by its title, where it is not the usual one."""
        kind = self.shape["gate"]
        return str(GATES[kind].title) if kind != "softmax_topk" else ""

    @property
    def label(self) -> str:
        """The picture in words."""
        sentence = ngettext(
            "Dense block: attention, then one feed-forward of width %(dense_width)s. With experts: attention, then a router "
            "that sends each token to the only expert, of width %(expert_width)s; shared experts: %(num_shared_experts)s.",
            "Dense block: attention, then one feed-forward of width %(dense_width)s. With experts: attention, then a router "
            "that sends each token to %(top_k)s of %(num_experts)s experts of width %(expert_width)s at most; shared "
            "experts: %(num_shared_experts)s.",
            self.shape["num_experts"],
        )
        return sentence % self.words


def shape_of(mixture: ModelSpec) -> dict[str, Any]:
    """The numbers that the diagram of a mixture's decoder block shows."""
    moe = mixture.moe
    assert moe is not None
    kinds = [{"kind": one.kind, "width": getattr(one, "width", 0)} for one in moe.expert_kinds or ()]
    return {
        "num_layers": mixture.num_hidden_layers,
        "num_moe_layers": len(moe.moe_layers),
        "hidden_size": mixture.hidden_size,
        "dense_width": mixture.intermediate_size,
        "expert_width": moe.moe_intermediate_size,
        "narrowest_width": min(
            (one["width"] for one in kinds if one["width"]), default=moe.moe_intermediate_size
        ),
        "shared_width": moe.shared_intermediate_size or 0,
        "num_experts": moe.num_experts,
        "top_k": moe.top_k,
        "num_shared_experts": moe.num_shared_experts,
        "gate": moe.gate.kind,
        "kinds": kinds,
    }


def diagram(shape: dict[str, Any]) -> Diagram:
    """Lay out one station per expert, sixteen at most; the rest is told in words."""
    count, kinds = shape["num_experts"], shape.get("kinds") or []
    drawn = min(count, MAX_DRAWN)
    gap = (RIGHT - LEFT) / max(1, drawn - 1) if drawn > 1 else 0.0
    lit = _lit(drawn, min(shape["top_k"], drawn))
    # Of many experts that differ, some of every part of the layer are shown; where all are alike, the first ones do.
    chosen = [place * (count - 1) // max(1, drawn - 1) for place in range(drawn)] if kinds else range(drawn)
    stations = []
    for place, index in enumerate(chosen):
        x = LEFT + place * gap if drawn > 1 else RAIL_X
        own = _own(kinds[index], shape["expert_width"]) if kinds else {}
        stations.append(Station(x, str(index), place in lit, _route(x), **own))
    shared = Station(SHARED_X, "S", True, _route(SHARED_X)) if shape["num_shared_experts"] else None
    return Diagram(shape, stations, shared, count - drawn)


def _own(kind: dict[str, Any], widest: int) -> dict[str, Any]:
    share = kind["width"] / widest
    return {"kind": kind["kind"], "breadth": NARROWEST + share * (BROADEST - NARROWEST)}


def _lit(drawn: int, top_k: int) -> set[int]:
    """Which stations the picture's token calls at: spread evenly."""
    return {round((index + 0.5) * drawn / top_k - 0.5) for index in range(top_k)}


def _route(x: float) -> str:
    """A smooth line from the router up to the station and on to the sum."""
    return (
        f"M{RAIL_X:.0f} {FORK_Y:.0f}C{RAIL_X:.0f} 112 {x:.1f} 122 {x:.1f} {EXPERT_Y:.0f}"
        f"C{x:.1f} 36 {RAIL_X:.0f} 46 {RAIL_X:.0f} {MERGE_Y:.0f}"
    )
