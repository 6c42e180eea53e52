"""From the experts of one version to those of another: every operation between them is followed by its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from moe_core.errors import SpecError
from moe_core.spec import MoeSpec
from moe_core.spec.numbering import Layers, Numbering, Numbers, numbering
from moe_core.spec.operations import OPERATION
from registry.models import ModelVersion


@dataclass(frozen=True, slots=True)
class Route:
    """The steps between two versions: the numbers on the other side of each, and what was learnt on the way."""

    steps: tuple[Numbers, ...] = ()
    # After how many steps a domain got experts of its own, its code, and they.
    learnt: tuple[tuple[int, str, tuple[int, ...]], ...] = ()
    # After how many steps, on the way back, a domain's own experts are about to be what they were cloned from.
    unlearnt: tuple[tuple[int, str, tuple[int, ...]], ...] = ()
    # For each step what became of layers; None where all keep their numbers.
    layers: tuple[Layers, ...] = ()

    @property
    def is_unchanged(self) -> bool:
        """Whether no layer was left out, every expert has its number, and no other is a copy or was made for a domain."""
        experts_stay = all(became == (expert,) for step in self.steps for expert, became in enumerate(step))
        return not self.learnt and experts_stay and not any(step is not None for step in self.layers)

    def follow_layer(self, layer: int) -> int | None:
        """The number of a layer of the first version in the last; None where it was left out."""
        now: int | None = layer
        for step in self.layers:
            if step is not None and now is not None:
                now = step.get(now)
        return now

    def follow(self, experts: Iterable[int], code: str = "") -> Followed:
        """What experts of the first version are in the last; with `code`, those that learnt its domain too."""
        followed = Followed([(expert, frozenset({expert})) for expert in experts])
        for number, step in enumerate(self.steps, start=1):
            for at, of, cloned in self.unlearnt:
                if (at, of) == (number - 1, code) and code:
                    followed.unlearn(frozenset(cloned))
            followed.step(step)
            for at, of, new in self.learnt:
                if (at, of) == (number, code) and code:
                    followed.now.append((None, frozenset(new)))
        return followed


@dataclass(slots=True)
class Followed:
    """Experts on their way: for each the number it began with (None: none of the first version), and those it has now."""

    now: list[tuple[int | None, frozenset[int]]]
    lost: list[int] = field(default_factory=list)

    def step(self, numbers: Numbers) -> None:
        """One operation further."""
        ahead: list[tuple[int | None, frozenset[int]]] = []
        for first, places in self.now:
            became = [numbers[place] if place < len(numbers) else () for place in places]
            new_places = frozenset(new for one in became for new in one or ())
            if new_places:
                ahead.append((first, new_places))
            elif first is not None:
                self.lost.append(first)
        self.now = ahead

    def unlearn(self, cloned: frozenset[int]) -> None:
        """Leave out what was made for the domain, where it has other experts beside."""
        self.now = [one for one in self.now if not one[1] <= cloned] or self.now

    @property
    def experts(self) -> list[int]:
        """Their numbers in the last version."""
        return sorted({new for _first, places in self.now for new in places})


def route(old: ModelVersion, new: ModelVersion) -> Route | None:
    """The way from one version to another, over their nearest common ancestor; None where experts cannot be followed."""
    above_old, above_new = list(_ancestry(old)), list(_ancestry(new))
    places = {one.pk: place for place, (one, _step) in enumerate(above_old)}
    for down, (one, _step) in enumerate(above_new):
        if one.pk in places:
            up = [step for _version, step in above_old[1 : places[one.pk] + 1]]
            return _joined(up, [step for _version, step in above_new[1 : down + 1]][::-1])
    return None


def _joined(up: list[Numbering | None], down: list[Numbering | None]) -> Route:
    steps: list[Numbers] = []
    layers: list[Layers] = []
    learnt, unlearnt = [], []
    for step in up:
        assert step is not None
        unlearnt += [(len(steps), code, experts) for code, experts in step.learnt]
        steps.append(step.back())
        layers.append(step.layers_back())
    for step in down:
        assert step is not None
        steps.append(step.forward())
        layers.append(step.layers_forward())
        learnt += [(len(steps), code, experts) for code, experts in step.learnt]
    return Route(tuple(steps), tuple(learnt), tuple(unlearnt), tuple(layers))


def _ancestry(version: ModelVersion) -> Iterator[tuple[ModelVersion, Numbering | None]]:
    """A version and those it was made of, nearest first, each with how the next one numbers its experts."""
    one: ModelVersion | None = version
    step: Numbering | None = None
    while one is not None:
        yield one, step
        step = step_from_parent(one)
        one = one.parent if step is not None else None


def step_from_parent(version: ModelVersion) -> Numbering | None:
    """How a version numbers the experts of the one it was made of; None where it has none of them, or nothing tells."""
    parent = version.parent
    if parent is None or parent.is_dense or version.is_dense:
        return None
    made = (version.lineage.get("operate") or {}).get("operation")
    if not made:
        # A run that tunes a mixture leaves its experts where they are.
        is_tuned = "map_id" in version.lineage and version.num_experts == parent.num_experts
        return Numbering.unchanged(version.num_experts) if is_tuned else None
    try:
        return numbering(MoeSpec.parse(parent.spec["moe"]), OPERATION.parse(made), version.report)
    except SpecError:
        # Written by another release, which knew something else.
        return None


def tuned_ancestor(version: ModelVersion, map_id: int | None = None) -> ModelVersion | None:
    """Return the version itself or the nearest ancestor that was tuned with a map; with `map_id`, with that one."""
    one: ModelVersion | None = version
    while one is not None:
        if one.lineage.get("map_id") is not None and map_id in (None, one.lineage["map_id"]):
            return one
        one = one.parent if step_from_parent(one) is not None else None
    return None
