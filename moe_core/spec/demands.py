"""What operations ask of the experts of a model, by its specification alone: each refused with its sentence. No tensors."""

from __future__ import annotations

from collections.abc import Iterable

from moe_core.errors import SpecError, placed
from moe_core.sentences import CORE
from moe_core.spec.gate import LinearGate, SigmoidGroups, SoftmaxTopk
from moe_core.spec.model import MoeSpec
from moe_core.spec.operations import Chosen

# The most experts of a layer, and of one token, that a specification takes.
MOST_EXPERTS, TOP_K_MOST = 1024, 64


def doublings(old: int, new: int) -> int:
    """How often `old` must be doubled to get `new`; raises SpecError where no number of times does."""
    times = (new // old).bit_length() - 1 if new > old else 0
    if times < 1 or old << times != new:
        raise SpecError.of("not_doubled", num_experts=new, old=old, next=2 * old)
    return times


def check_count(num_experts: int) -> None:
    """Raise SpecError where a layer would have more experts than any may."""
    if num_experts > MOST_EXPERTS:
        raise SpecError.of("too_many_experts", num_experts=num_experts, most=MOST_EXPERTS)


def check_top_k(moe: MoeSpec, method: str, times: int) -> None:
    """Raise SpecError where doubling so many times would give a token more experts than it may have."""
    if method == "twin" or moe.top_k * 2**times <= TOP_K_MOST:
        return
    reach = moe.num_experts * 2 ** ((TOP_K_MOST // moe.top_k).bit_length() - 1)
    values = {"method": method, "top_k": moe.top_k, "doubled": moe.top_k * 2**times}
    raise placed("num_experts", CORE.say("top_k_doubled", **values, most=TOP_K_MOST, reach=reach))


def num_groups_of(moe: MoeSpec) -> int:
    """How many groups of equal size a gate chooses among before it chooses experts; 1 where it does not."""
    return moe.gate.num_groups if isinstance(moe.gate, SigmoidGroups) else 1


def groups_of(moe: MoeSpec) -> list[list[int]]:
    """The numbers of the experts of each group."""
    size = moe.num_experts // num_groups_of(moe)
    return [list(range(start, start + size)) for start in range(0, moe.num_experts, size)]


def check_alone(moe: MoeSpec, *, per_group: bool | None = None) -> None:
    """Raise SpecError where experts cannot be taken by themselves.

    Where a gate has groups that is one of `per_group`, unless the operation has no such field (None).
    """
    if not isinstance(moe.gate, LinearGate):
        raise SpecError.of("gate_ties_experts", gate=moe.gate.kind)
    if num_groups_of(moe) == 1 or per_group:
        return
    values = {"gate": moe.gate.kind, "groups": num_groups_of(moe)}
    if per_group is None:
        raise SpecError.of("groups_tie_experts", **values)
    raise placed("per_group", CORE.say("groups_by_place", **values))


def check_idle(moe: MoeSpec) -> None:
    """Raise SpecError where no expert can be idle, or what it is nearest to be told by the experts' scores alone."""
    if not isinstance(moe.gate, LinearGate):
        raise SpecError.of("gate_ties_experts", gate=moe.gate.kind)
    if num_groups_of(moe) > 1:
        raise SpecError.of("groups_hide_the_nearest", gate=moe.gate.kind, groups=num_groups_of(moe))
    if moe.twins is not None:
        raise SpecError.of("twins_are_never_idle")
    if moe.top_k == moe.num_experts:
        raise SpecError.of("none_is_idle", num_experts=moe.num_experts)


def check_growth(moe: MoeSpec, method: str) -> None:
    """Raise SpecError where copies of experts would not be chosen as the one was.

    One of two twins is seen: every gate whose tokens choose chooses it as it chose the one. Copies that are chosen together
    divide shares that other gates cut off, project or draw.
    """
    if moe.gate.sees_the_batch:
        raise SpecError.of("growth_of_pickers", gate=moe.gate.kind)
    if method != "twin" and not isinstance(moe.gate, SoftmaxTopk | SigmoidGroups):
        raise placed("method", CORE.say("growth_needs_softmax", method=method, gate=moe.gate.kind))
    if moe.capacity is not None:
        raise SpecError.of("growth_without_capacity")
    if method != "twin" and moe.twins is not None:
        raise placed("method", CORE.say("other_twins", method=method))
    gate = moe.gate
    if method == "twin" or not isinstance(gate, SigmoidGroups):
        return
    if gate.topk_group < gate.num_groups and gate.group_score == "two_best" and len(groups_of(moe)[0]) > 1:
        raise placed("method", CORE.say("other_groups", method=method))


def check_expert(moe: MoeSpec, field: str, expert: int, *, per_group: bool = False) -> None:
    """Raise SpecError where there is no such expert, or no such place in a group."""
    count = len(groups_of(moe)[0]) if per_group else moe.num_experts
    if expert >= count:
        code = "no_such_place" if per_group else "no_such_expert"
        raise placed(field, CORE.say(code, expert=expert, num_experts=count))


def check_chosen(moe: MoeSpec, name: str, chosen: Chosen | None, *, per_group: bool) -> None:
    """One expert of each layer, or one number for all, must be there."""
    if isinstance(chosen, tuple) and len(chosen) != len(moe.moe_layers):
        sentence = CORE.say("one_for_each_layer", experts=len(chosen), layers=len(moe.moe_layers))
        raise placed(name, sentence)
    for expert in (chosen,) if isinstance(chosen, int) else chosen or ():
        check_expert(moe, name, expert, per_group=per_group)


def spread(moe: MoeSpec, chosen: Chosen, *, per_group: bool = False) -> list[list[int]]:
    """The expert of each expert layer, or with `per_group` those at one place of each of its groups."""
    groups = groups_of(moe) if per_group else [list(range(moe.num_experts))]
    each = (chosen,) * len(moe.moe_layers) if isinstance(chosen, int) else chosen
    return [[group[expert] for group in groups] for expert in each]


def check_source(moe: MoeSpec, sources: Iterable[int]) -> None:
    """Raise SpecError where one more twin would make a hash deal tokens anew."""
    for source in sources:
        if moe.twins is not None and moe.twins.hold is None and moe.twins.has_twins(source):
            raise placed("source", CORE.say("has_hash_twins", expert=source))


def check_clone(moe: MoeSpec) -> None:
    """Raise SpecError where a clone could not win tokens by its gate row, because a hash has a say between twins."""
    if moe.twins is not None and moe.twins.hold != 0.0:
        raise SpecError.of("hash_between_twins")


def check_composable(moe: MoeSpec) -> None:
    """Raise SpecError for mixtures to whose gates no row of a domain can be added, or whose twins a hash deals."""
    if not isinstance(moe.gate, LinearGate) or moe.gate.sees_the_batch:
        raise SpecError.of("gate_not_composable", gate=moe.gate.kind)
    if moe.twins is not None and moe.twins.hold != 0.0:
        raise SpecError.of("twins_not_composable")


def check_tunable(moe: MoeSpec) -> None:
    """Raise SpecError for a mixture that a tuning run cannot teach."""
    if moe.gate.not_tuned is not None:
        raise SpecError.of("not_tuned", gate=moe.gate.kind, why=moe.gate.not_tuned)
    if moe.quantisation is not None:
        raise SpecError.of("packed_experts", bits=moe.quantisation.bits)
