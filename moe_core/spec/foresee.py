"""What an operation on experts makes of a model's specification, told before anything is done. No tensors."""

from __future__ import annotations

from typing import Any

from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec.gate import LinearGate, SigmoidGroups, SoftmaxTopk
from moe_core.spec.layout import LayoutSpec
from moe_core.spec.model import ModelSpec, MoeSpec
from moe_core.spec.operations import (
    AddExpertSpec,
    Chosen,
    ComposeSpec,
    DequantiseSpec,
    DistilSpec,
    EditSpec,
    GrowSpec,
    MergeExpertsSpec,
    OperationSpec,
    QuantiseSpec,
    ReleaseTwinsSpec,
    RemoveExpertSpec,
    SpecialiseCloneSpec,
    UpcycleSpec,
    WakeExpertSpec,
)
from moe_core.spec.twins import TwinsSpec

FAMILY = "turnout_moe"
# The way out where a gate has groups.
PER_GROUP = "set per_group to do the same at one place of each group"


# What a model says of the packing of its experts, of the maps around attention, and of the output map.
PACKINGS = ("quantisation", "attention_quantisation", "head_quantisation")
# The most experts of a layer, and of one token, that a specification takes.
MOST_EXPERTS, TOP_K_MOST = 1024, 64


def foreseen(spec: ModelSpec, operation: OperationSpec) -> ModelSpec:
    """The specification that `operation` makes of `spec`; its costs are those of the model that the operation makes.

    Its family is "turnout_moe", which can say everything; the operation itself takes a family of transformers where one
    can. Raises SpecError, with the field in `faults`, for what the operation would refuse by the specification alone:
    the weights and the logs may still forbid more.
    """
    try:
        return _foreseen(spec, operation)
    except SpecError as error:
        # What is wrong with the model that would come out is no field of what was asked.
        asked = type(operation).model_fields
        error.faults = tuple(
            (place if place and place[0] in asked else (), sentence) for place, sentence in error.faults
        )
        raise


def _foreseen(spec: ModelSpec, operation: OperationSpec) -> ModelSpec:
    if isinstance(operation, UpcycleSpec):
        return cut_layout(spec, operation.layout, operation.granularity).applied_to(spec)
    if isinstance(operation, ComposeSpec):
        return _composed(spec, operation)
    moe = _mixture(spec)
    if isinstance(operation, DequantiseSpec):
        if moe.quantisation is None:
            raise SpecError.of("not_packed")
        return _with(spec, **dict.fromkeys(PACKINGS))
    if isinstance(operation, ReleaseTwinsSpec):
        if moe.twins is None:
            raise SpecError.of("no_twins")
        return _with(spec, twins={**moe.twins.model_dump(), "hold": operation.hold})
    if moe.quantisation is not None:
        raise SpecError.of("packed_experts", bits=moe.quantisation.bits)
    if moe.expert_kinds is not None:
        raise SpecError.of("experts_differ")
    if isinstance(operation, QuantiseSpec):
        return _packed(spec, operation)
    if isinstance(operation, GrowSpec):
        check_alone(moe, per_group=True)
        return _grown(spec, moe, operation)
    if isinstance(operation, EditSpec):
        check_alone(moe, per_group=operation.per_group, instead=PER_GROUP)
    else:
        check_alone(moe)
    if isinstance(operation, WakeExpertSpec):
        return _woken(spec, moe, operation)
    if isinstance(operation, DistilSpec):
        return _distilled(spec, moe, operation)
    if isinstance(operation, AddExpertSpec | SpecialiseCloneSpec):
        per_group = isinstance(operation, AddExpertSpec) and operation.per_group
        if isinstance(operation, AddExpertSpec):
            check_growth(moe, "twin")
        _check_expert(moe, "source", operation.source, per_group=per_group)
        hold = 0.0 if isinstance(operation, SpecialiseCloneSpec) else moe.twins.hold if moe.twins else None
        groups = groups_of(moe) if per_group else [list(range(moe.num_experts))]
        order = tuple(e for group in groups for e in (*group, group[operation.source]))
        return _with(spec, num_experts=len(order), twins=_twins(moe, order, hold))
    return _with_one_fewer(spec, moe, operation)


def doublings(old: int, new: int) -> int:
    """How often `old` must be doubled to get `new`; raises SpecError where no number of times does."""
    times = (new // old).bit_length() - 1 if new > old else 0
    if times < 1 or old << times != new:
        raise SpecError.of("not_doubled", num_experts=new, old=old, next=2 * old)
    return times


def cut_layout(dense: ModelSpec, layout: LayoutSpec, granularity: int) -> LayoutSpec:
    """The layout with the width that slices have; raises SpecError when the feed-forward cannot be cut so."""
    if granularity == 1:
        return layout
    if dense.intermediate_size % granularity:
        raise SpecError.of(
            "granularity_divides",
            name="intermediate_size",
            value=dense.intermediate_size,
            granularity=granularity,
        )
    width = dense.intermediate_size // granularity
    return LayoutSpec.parse({**layout.model_dump(), "moe_intermediate_size": width})


def _mixture(spec: ModelSpec) -> MoeSpec:
    if spec.moe is None:
        raise SpecError.of("dense_has_no_experts", family=spec.family)
    return spec.moe


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
    raise _placed("num_experts", CORE.say("top_k_doubled", **values, most=TOP_K_MOST, reach=reach))


def _with(spec: ModelSpec, **changes: Any) -> ModelSpec:
    check_count(changes.get("num_experts", 0))
    moe = {**_mixture(spec).model_dump(), **changes}
    return ModelSpec.parse({**spec.model_dump(), "moe": moe, "family": FAMILY})


def num_groups_of(moe: MoeSpec) -> int:
    """How many groups of equal size a gate chooses among before it chooses experts; 1 where it does not."""
    return moe.gate.num_groups if isinstance(moe.gate, SigmoidGroups) else 1


def groups_of(moe: MoeSpec) -> list[list[int]]:
    """The numbers of the experts of each group."""
    size = moe.num_experts // num_groups_of(moe)
    return [list(range(start, start + size)) for start in range(0, moe.num_experts, size)]


def check_alone(
    moe: MoeSpec, *, per_group: bool = False, instead: str = "use a model whose gate has one group"
) -> None:
    """Raise SpecError where experts cannot be taken by themselves; `instead` is the way out where a gate has groups."""
    if not isinstance(moe.gate, LinearGate):
        raise SpecError.of("gate_ties_experts", gate=moe.gate.kind)
    if num_groups_of(moe) > 1 and not per_group:
        values = {"gate": moe.gate.kind, "groups": num_groups_of(moe)}
        raise SpecError.of("groups_by_place" if instead == PER_GROUP else "groups_tie_experts", **values)


def check_growth(moe: MoeSpec, method: str) -> None:
    """Raise SpecError where copies of experts would not be chosen as the one was."""
    if not isinstance(moe.gate, SoftmaxTopk | SigmoidGroups):
        raise SpecError.of("growth_needs_softmax", gate=moe.gate.kind)
    if moe.capacity is not None:
        raise SpecError.of("growth_without_capacity")
    if method != "twin" and moe.twins is not None:
        raise _placed("method", CORE.say("other_twins", method=method))
    gate = moe.gate
    if method == "twin" or not isinstance(gate, SigmoidGroups):
        return
    if gate.topk_group < gate.num_groups and gate.group_score == "two_best" and len(groups_of(moe)[0]) > 1:
        raise _placed("method", CORE.say("other_groups", method=method))


def _check_expert(moe: MoeSpec, field: str, expert: int, *, per_group: bool = False) -> None:
    count = len(groups_of(moe)[0]) if per_group else moe.num_experts
    if expert >= count:
        code = "no_such_place" if per_group else "no_such_expert"
        raise _placed(field, CORE.say(code, expert=expert, num_experts=count))


def _placed(field: str, sentence: str) -> SpecError:
    refusal = SpecError(sentence)
    refusal.faults = (((field,), sentence),)
    return refusal


def _twins(moe: MoeSpec, order: tuple[int, ...], hold: float | None) -> dict[str, Any]:
    check_count(len(order))
    twins = moe.twins or TwinsSpec(roots=tuple(range(moe.num_experts)))
    return TwinsSpec.parse({"roots": twins.taking(order), "hold": hold}).model_dump()


def _packed(spec: ModelSpec, operation: QuantiseSpec) -> ModelSpec:
    kind = spec.attention
    if operation.attention is not None and (kind.mla is not None or kind.head_gate):
        raise _placed("attention", CORE.say("attention_unpackable"))
    # A packed head is no embedding.
    tied = spec.tie_word_embeddings and operation.head is None
    parts = (operation.quantisation, operation.attention, operation.head)
    packed = {name: part and part.model_dump() for name, part in zip(PACKINGS, parts, strict=True)}
    return _with(spec.model_copy(update={"tie_word_embeddings": tied}), **packed)


def _grown(spec: ModelSpec, moe: MoeSpec, operation: GrowSpec) -> ModelSpec:
    try:
        times = doublings(moe.num_experts, operation.num_experts)
    except SpecError as error:
        raise _placed("num_experts", str(error)) from error
    check_growth(moe, operation.method)
    check_top_k(moe, operation.method, times)
    if operation.method == "twin":
        order = tuple(e for group in groups_of(moe) for e in group * 2**times)
        hold = moe.twins.hold if moe.twins else None
        return _with(spec, num_experts=operation.num_experts, twins=_twins(moe, order, hold))
    changes: dict[str, Any] = {"num_experts": operation.num_experts, "top_k": moe.top_k * 2**times}
    changes["gate"] = gate_of_pairs(moe, times)
    if operation.method == "split":
        if moe.moe_intermediate_size % 2**times:
            sentence = CORE.say("unsplit", width=moe.moe_intermediate_size, parts=2**times)
            raise _placed("method", sentence)
        changes["moe_intermediate_size"] = moe.moe_intermediate_size // 2**times
    return _with(spec, **changes)


def gate_of_pairs(moe: MoeSpec, times: int = 1) -> dict[str, Any]:
    """The gate that gives each of two copies half of the weight, so many times."""
    gate = moe.gate.model_dump()
    # Shares of all experts halve by themselves, and so do weights that are made to sum to one; scores of their own do not.
    if isinstance(moe.gate, SigmoidGroups) and moe.gate.scores != "softmax" and not moe.norm_topk_prob:
        gate["routed_scaling_factor"] /= 2**times
    return gate


def _distilled(spec: ModelSpec, moe: MoeSpec, operation: DistilSpec) -> ModelSpec:
    width = operation.moe_intermediate_size or moe.moe_intermediate_size
    for field, asked, own in (
        ("num_experts", operation.num_experts, moe.num_experts),
        ("moe_intermediate_size", width, moe.moe_intermediate_size),
    ):
        if asked > own:
            raise _placed(field, CORE.say("student_larger", asked=asked, own=own))
    top_k = operation.top_k or min(moe.top_k, operation.num_experts)
    changes = {"num_experts": operation.num_experts, "top_k": top_k, "moe_intermediate_size": width}
    return _with(_shallower(spec, operation.num_hidden_layers), **changes, twins=None)


def _woken(spec: ModelSpec, moe: MoeSpec, operation: WakeExpertSpec) -> ModelSpec:
    if moe.twins is not None:
        raise SpecError.of("twins_are_never_idle")
    if moe.top_k == moe.num_experts:
        raise SpecError.of("none_is_idle", num_experts=moe.num_experts)
    _check_chosen(moe, "expert", operation.expert, per_group=False)
    return _with(spec)


def _check_chosen(moe: MoeSpec, name: str, chosen: Chosen | None, *, per_group: bool) -> None:
    """One expert of each layer, or one number for all, must be there."""
    if isinstance(chosen, tuple) and len(chosen) != len(moe.moe_layers):
        sentence = CORE.say("one_for_each_layer", experts=len(chosen), layers=len(moe.moe_layers))
        raise _placed(name, sentence)
    for expert in (chosen,) if isinstance(chosen, int) else chosen or ():
        _check_expert(moe, name, expert, per_group=per_group)


def kept_counts(spec: ModelSpec, num_layers: int) -> tuple[int, int]:
    """How many expert layers and dense layers are left when so many layers are kept: their proportion stays.

    Raises SpecError for more layers than there are, and where layers differ in the shape of their attention.
    """
    if num_layers > spec.num_hidden_layers:
        sentence = CORE.say("student_larger", asked=num_layers, own=spec.num_hidden_layers)
        raise _placed("num_hidden_layers", sentence)
    if spec.attention.sliding is not None:
        raise _placed("num_hidden_layers", CORE.say("layers_differ"))
    num_moe = len(_mixture(spec).moe_layers)
    kept = max(1, round(num_layers * num_moe / spec.num_hidden_layers))
    # No more dense layers than there are.
    kept = max(kept, num_layers - (spec.num_hidden_layers - num_moe))
    return kept, num_layers - kept


def _shallower(spec: ModelSpec, num_layers: int | None) -> ModelSpec:
    """The specification with fewer layers; which they are hangs on the weights, so experts stand in the lowest here."""
    if num_layers is None:
        return spec
    num_moe, _dense = kept_counts(spec, num_layers)
    plain = spec.model_dump()
    plain["moe"]["moe_layers"] = tuple(range(num_moe))
    plain["attention"]["sliding_layers"] = [
        layer for layer in plain["attention"]["sliding_layers"] if layer < num_layers
    ]
    for name in ("expert_clamps", "dense_clamps"):
        plain[name] = plain[name][:num_layers]
    return ModelSpec.parse({**plain, "num_hidden_layers": num_layers, "family": FAMILY})


def _with_one_fewer(
    spec: ModelSpec, moe: MoeSpec, operation: RemoveExpertSpec | MergeExpertsSpec
) -> ModelSpec:
    names = ("expert",) if isinstance(operation, RemoveExpertSpec) else ("first", "second")
    for name in names:
        _check_chosen(moe, name, getattr(operation, name), per_group=operation.per_group)
    gone = num_groups_of(moe)
    if moe.num_experts - gone < moe.top_k:
        raise SpecError.of("too_few_left", num_experts=moe.num_experts, top_k=moe.top_k)
    if isinstance(operation, MergeExpertsSpec) and operation.first == operation.second:
        raise _placed("second", CORE.say("merged_with_itself", expert=operation.first))
    # Which twins are left hangs on the weights' load too; they have no cost.
    return _with(spec, num_experts=moe.num_experts - gone, twins=None)


def _composed(spec: ModelSpec, operation: ComposeSpec) -> ModelSpec:
    count = len(operation.domains)
    if spec.moe is None:
        layers = operation.moe_layers or tuple(range(spec.num_hidden_layers))
        layout = {"moe_layers": layers, "num_experts": count, "top_k": operation.top_k or 1}
        return LayoutSpec.parse(layout).applied_to(spec)
    moe = spec.moe
    if moe.quantisation is not None:
        raise SpecError.of("packed_experts", bits=moe.quantisation.bits)
    if moe.expert_kinds is not None:
        raise SpecError.of("experts_differ")
    if operation.moe_layers is not None:
        raise _placed("moe_layers", CORE.say("layers_are_kept"))
    if moe.twins is not None or moe.gate.kind != "softmax_topk":
        raise SpecError.of("not_composable")
    num_experts, top_k = count * moe.num_experts, operation.top_k or moe.top_k
    if top_k > num_experts:
        raise _placed("top_k", CORE.say("top_k_over_experts", top_k=top_k, num_experts=num_experts))
    return _with(spec, num_experts=num_experts, top_k=top_k)
