"""One expert of each layer goes, or one of each group: what is left, told and refused by the specification. No tensors.

Shapes: L expert layers, G groups of a gate (one where it has none), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_core.errors import SpecError, placed
from moe_core.sentences import CORE
from moe_core.spec.demands import check_chosen, groups_of, num_groups_of, spread
from moe_core.spec.gate import SigmoidGroups
from moe_core.spec.model import MoeSpec
from moe_core.spec.operations import MergeExpertsSpec, RemoveExpertSpec
from moe_core.spec.twins import TwinsSpec

# The numbers of the experts that go: of each layer, of each group.
Gone = Sequence[Sequence[int]]


def left_by(moe: MoeSpec, operation: RemoveExpertSpec | MergeExpertsSpec) -> dict[str, Any]:
    """What changes of the experts when one goes; of twins that are not named, those that the first that may leaves.

    Raises SpecError for whatever forbids it.
    """
    names = ("expert",) if isinstance(operation, RemoveExpertSpec) else ("first", "second")
    for name in names:
        check_chosen(moe, name, getattr(operation, name), per_group=operation.per_group)
    if isinstance(operation, MergeExpertsSpec):
        _check_two(moe, operation)
    chosen = getattr(operation, names[-1])
    if chosen is None:
        chosen = places_to_go(moe, per_group=operation.per_group)[0]
    gone_LG = spread(moe, chosen, per_group=operation.per_group)
    return fewer(moe, _with_others(moe, gone_LG, operation.together), names[-1])


def _with_others(moe: MoeSpec, gone_LG: Gone, together: int) -> list[list[int]]:
    """So many of its group in the place of each expert that goes: who shares its gate row hangs on the weights."""
    if together == 1:
        return [list(gone_G) for gone_G in gone_LG]
    if moe.twins is not None and any(map(moe.twins.has_twins, range(moe.num_experts))):
        raise placed("together", CORE.say("twins_before_halves"))
    groups = groups_of(moe)

    def others(one: int) -> list[int]:
        group = groups[one // len(groups[0])]
        return [one, *(e for e in group if e != one)][:together]

    return [[e for one in gone_G for e in others(one)] for gone_G in gone_LG]


def places_to_go(moe: MoeSpec, *, per_group: bool) -> list[int]:
    """The experts, or places of a group, that may go from every layer; SpecError where none may."""
    places, refusals = range(len(groups_of(moe)[0]) if per_group else moe.num_experts), []
    allowed = []
    for place in places:
        try:
            fewer(moe, spread(moe, place, per_group=per_group))
            allowed.append(place)
        except SpecError as error:
            refusals.append(error)
    if not allowed:
        raise refusals[0]
    return allowed


def fewer(moe: MoeSpec, gone_LG: Gone, field: str = "") -> dict[str, Any]:
    """What changes of the experts when these go: their number, and who is whose twin.

    Raises SpecError, of `field` where the experts are to blame, when too few are left or twins forbid it.
    """
    left = moe.num_experts - len(gone_LG[0])
    _check_enough_left(moe, len(gone_LG[0]) // num_groups_of(moe))
    twins = None if moe.twins is None else _fewer_twins(moe, moe.twins, gone_LG, field)
    return {"num_experts": left, "twins": twins}


def _check_enough_left(moe: MoeSpec, gone: int) -> None:
    """Raise SpecError where a token would find too few experts when so many go from each group of the gate."""
    size, groups = len(groups_of(moe)[0]), num_groups_of(moe)
    most = next(most for most in range(size - 1, -1, -1) if _is_enough(moe, size - most))
    if gone <= most:
        return
    if most:
        values = {"num_experts": size, "gone": gone, "top_k": moe.top_k}
        raise SpecError.of("too_few_left_together", **values, least=size - most, most=most)
    if groups > 1:
        left = moe.num_experts - groups
        why = moe.gate.complaint(left, moe.top_k) if left else CORE.say("group_empty")
        raise SpecError.of("groups_too_small", size=size, why=why)
    if moe.num_experts == 1:
        raise SpecError.of("last_expert")
    raise SpecError.of("too_few_left", num_experts=moe.num_experts, top_k=moe.top_k)


def _is_enough(moe: MoeSpec, size: int) -> bool:
    """Whether groups of so many experts have those of a token."""
    num_experts = size * num_groups_of(moe)
    return num_experts >= moe.top_k and moe.gate.complaint(num_experts, moe.top_k) is None


def without(num_experts: int, gone_LG: Gone) -> list[list[int]]:
    """What is left of each layer's experts."""
    return [[e for e in range(num_experts) if e not in gone] for gone in gone_LG]


def _fewer_twins(moe: MoeSpec, twins: TwinsSpec, gone_LG: Gone, field: str) -> dict[str, Any]:
    kept = {twins.taking(tuple(keep)) for keep in without(moe.num_experts, gone_LG)}
    if len(kept) > 1:
        raise placed(field, CORE.say("twins_in_every_layer"))
    gone = sorted({expert for gone_G in gone_LG for expert in gone_G})
    crowded = [e for e in gone if twins.roots.count(twins.roots[e]) > 2]
    if crowded and twins.hold is None:
        raise placed(field, CORE.say("hash_deals_anew", expert=crowded[0]))
    roots = kept.pop()
    gate = moe.gate
    groups = (gate.num_groups, gate.topk_group) if isinstance(gate, SigmoidGroups) else (1, 1)
    seen = TwinsSpec(roots=roots).seen(*groups)
    if seen < moe.top_k:
        named = ", ".join(map(str, gone))
        raise placed(field, CORE.say("too_few_seen", expert=named, seen=seen, top_k=moe.top_k))
    return {"roots": roots, "hold": twins.hold}


def _check_two(moe: MoeSpec, operation: MergeExpertsSpec) -> None:
    """In no layer may an expert be merged with itself."""
    first, second = (
        (chosen,) * len(moe.moe_layers) if isinstance(chosen, int) else chosen
        for chosen in (operation.first, operation.second)
    )
    for one, other in zip(first, second, strict=True):
        if one == other:
            raise placed("second", CORE.say("merged_with_itself", expert=one))
