"""Which experts of a model became which experts of the model that an operation made of it. No tensors.

Shapes: L expert layers, E experts before, F experts after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moe_core.spec.demands import groups_of
from moe_core.spec.model import MoeSpec
from moe_core.spec.operations import (
    AddExpertSpec,
    Chosen,
    ComposeSpec,
    DistilSpec,
    GrowSpec,
    MergeExpertsSpec,
    OperationSpec,
    RemoveExpertSpec,
    SpecialiseCloneSpec,
    UpcycleSpec,
)

# What one expert of a layer is made of: numbers of experts before, none for one that is new.
Sources = tuple[int, ...]
# For each expert its numbers on the other side: several for copies, none for one that is gone, None where layers differ.
Numbers = tuple[tuple[int, ...] | None, ...]
# The number on the other side of each layer that is there; None where all keep theirs.
Layers = Mapping[int, int] | None


@dataclass(frozen=True, slots=True)
class Numbering:
    """What each expert of each layer is made of, before and after one operation or several.

    `made_of_LF` has the numbers before, `num_before` is how many there were, and `learnt` names experts that were made for
    a domain: its code and their numbers after. `layers` has for each layer of the model after its number before, expert
    layer or not; None where all keep theirs.
    """

    made_of_LF: tuple[tuple[Sources, ...], ...]
    num_before: int
    learnt: tuple[tuple[str, Sources], ...] = ()
    layers: tuple[int, ...] | None = None

    @classmethod
    def unchanged(cls, num_experts: int) -> Numbering:
        """Every expert keeps its number."""
        return cls((_each(range(num_experts)),), num_experts)

    def forward(self) -> Numbers:
        """For each expert before: what it became."""
        return _alike([_inverse(made_of_F, self.num_before) for made_of_F in self.made_of_LF])

    def back(self) -> Numbers:
        """For each expert after: what it was made of."""
        return _alike(self.made_of_LF)

    def layers_forward(self) -> Layers:
        """For each layer before that is there after: its number."""
        return None if self.layers is None else {old: new for new, old in enumerate(self.layers)}

    def layers_back(self) -> Layers:
        """For each layer after: its number before."""
        return None if self.layers is None else dict(enumerate(self.layers))


def numbering(moe: MoeSpec, operation: OperationSpec, report: Mapping[str, Any]) -> Numbering | None:
    """How `operation` numbers the experts of a mixture anew; None where they cannot be followed.

    Args:
        moe: the expert part of the model before.
        operation: what was done to it.
        report: what the operation told; it has the experts that were chosen by their load, groups that were merged, and
            layers that were kept.
    """
    if isinstance(operation, UpcycleSpec):
        return None
    if isinstance(operation, DistilSpec):
        grouped = _grouped(moe, report.get("groups"))
        if grouped is None or operation.num_hidden_layers is None:
            return grouped
        return replace(grouped, layers=tuple(report["layers"])) if report.get("layers") else None
    if isinstance(operation, RemoveExpertSpec):
        # Who shares a gate row with the one that is named is known from the weights alone.
        alone = operation.together == 1
        gone = operation.expert if alone and operation.expert is not None else report.get("experts")
        return None if gone is None else _without(moe, _places(moe, gone, operation.per_group), {})
    if isinstance(operation, MergeExpertsSpec):
        alone = operation.together == 1
        chosen = operation.model_dump() if alone else report
        if "second" not in chosen:
            return None
        first, second = (_places(moe, chosen[name], operation.per_group) for name in ("first", "second"))
        return _without(moe, second, {"into": first})
    return _with_copies(moe, operation)


def _with_copies(moe: MoeSpec, operation: OperationSpec) -> Numbering:
    """Operations that take no expert away, the same in every layer."""
    count = moe.num_experts
    learnt: tuple[tuple[str, Sources], ...] = ()
    order: Iterable[int] = range(count)
    if isinstance(operation, GrowSpec):
        order = (e for group in groups_of(moe) for e in group * (operation.num_experts // count))
    elif isinstance(operation, AddExpertSpec):
        groups = groups_of(moe) if operation.per_group else [list(range(count))]
        order = (e for group in groups for e in (*group, group[operation.source]))
    elif isinstance(operation, SpecialiseCloneSpec):
        learnt = ((operation.domain, (count,)),)
        order = (*range(count), operation.source)
    made_of = _each(order)
    if isinstance(operation, ComposeSpec):
        # The experts of the first model come first; those of the others are new.
        made_of += ((),) * (count * (len(operation.domains) - 1))
    return Numbering((made_of,), count, learnt)


def _places(moe: MoeSpec, chosen: Chosen | Sequence[Any], per_group: bool) -> list[list[int]]:
    """The chosen experts of each layer; one list stands for all layers where one number does."""
    each = [chosen] if isinstance(chosen, int) else list(chosen)
    # A report names all experts of the groups; a specification their place in a group.
    return [
        list(one)
        if isinstance(one, list | tuple)
        else [group[one] for group in groups_of(moe)]
        if per_group
        else [one]
        for one in each
    ]


def _without(moe: MoeSpec, gone_L: list[list[int]], merged: Mapping[str, list[list[int]]]) -> Numbering:
    """Experts leave, by layer; merged ones go `into` others."""
    into_L = merged.get("into") or [[]]
    num_layers = max(len(gone_L), len(into_L))
    made_of_LF = []
    for layer in range(num_layers):
        gone, into = gone_L[layer % len(gone_L)], into_L[layer % len(into_L)]
        taken = dict(zip(into, gone, strict=False))
        kept = [e for e in range(moe.num_experts) if e not in gone]
        made_of_LF.append(tuple((e, taken[e]) if e in taken else (e,) for e in kept))
    return Numbering(tuple(made_of_LF), moe.num_experts)


def _grouped(moe: MoeSpec, groups_L: Any) -> Numbering | None:
    if not groups_L:
        return None
    made_of_LF = tuple(tuple(tuple(members) for members in groups) for groups in groups_L)
    return Numbering(made_of_LF, moe.num_experts)


def _each(order: Iterable[int]) -> tuple[Sources, ...]:
    return tuple((e,) for e in order)


def _inverse(made_of_F: Sequence[Sources], num_before: int) -> tuple[Sources, ...]:
    became: list[list[int]] = [[] for _ in range(num_before)]
    for place, sources in enumerate(made_of_F):
        for source in sources:
            became[source].append(place)
    return tuple(map(tuple, became))


def _alike(rows_L: Sequence[Sequence[Sources]]) -> Numbers:
    """What all layers agree on."""
    return tuple(
        tuple(sorted(each_L[0])) if len({frozenset(one) for one in each_L}) == 1 else None
        for each_L in zip(*rows_L, strict=True)
    )
