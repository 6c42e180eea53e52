"""What an operation on experts makes of a model's specification, told before anything is done. No tensors."""

from __future__ import annotations

from typing import Any

from moe_core.errors import SpecError, placed
from moe_core.sentences import CORE
from moe_core.spec.demands import (
    check_alone,
    check_chosen,
    check_clone,
    check_composable,
    check_count,
    check_expert,
    check_growth,
    check_idle,
    check_source,
    check_top_k,
    doublings,
    groups_of,
)
from moe_core.spec.fewer import left_by
from moe_core.spec.fewer_layers import FAMILY, kept_layers, with_kept
from moe_core.spec.gate import Base, LinearGate, SigmoidGroups, Sparsemax
from moe_core.spec.layout import LayoutSpec
from moe_core.spec.model import ModelSpec, MoeSpec
from moe_core.spec.operations import (
    AddExpertSpec,
    ComposeSpec,
    DequantiseSpec,
    DistilSpec,
    EditSpec,
    GrowSpec,
    MeasureSpec,
    OperationSpec,
    QuantiseSpec,
    ReleaseTwinsSpec,
    SpecialiseCloneSpec,
    UpcycleSpec,
    WakeExpertSpec,
)
from moe_core.spec.twins import TwinsSpec

# What a model says of the packing of its experts, of the maps around attention, and of the output map.
PACKINGS = ("quantisation", "attention_quantisation", "head_quantisation")


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
    if isinstance(operation, MeasureSpec):
        return spec
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
    if isinstance(operation, WakeExpertSpec):
        return _woken(spec, moe, operation)
    check_alone(moe, per_group=operation.per_group if isinstance(operation, EditSpec) else None)
    if isinstance(operation, DistilSpec):
        return _distilled(spec, moe, operation)
    if isinstance(operation, AddExpertSpec | SpecialiseCloneSpec):
        return _with_twin(spec, moe, operation)
    return _with(spec, **left_by(moe, operation))


def cut_layout(dense: ModelSpec, layout: LayoutSpec, granularity: int) -> LayoutSpec:
    """The layout with the width that slices have; raises SpecError when the feed-forward cannot be cut so."""
    if granularity == 1:
        return layout
    if layout.gate.kind == "hash":
        raise placed("granularity", CORE.say("hash_slices", granularity=granularity))
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


def _with(spec: ModelSpec, **changes: Any) -> ModelSpec:
    check_count(changes.get("num_experts", 0))
    moe = {**_mixture(spec).model_dump(), **changes}
    return ModelSpec.parse({**spec.model_dump(), "moe": moe, "family": FAMILY})


def _twins(moe: MoeSpec, order: tuple[int, ...], hold: float | None) -> dict[str, Any]:
    check_count(len(order))
    twins = moe.twins or TwinsSpec(roots=tuple(range(moe.num_experts)))
    return TwinsSpec.parse({"roots": twins.taking(order), "hold": hold}).model_dump()


def _with_twin(spec: ModelSpec, moe: MoeSpec, operation: AddExpertSpec | SpecialiseCloneSpec) -> ModelSpec:
    per_group = isinstance(operation, AddExpertSpec) and operation.per_group
    check_growth(moe, "twin")
    check_expert(moe, "source", operation.source, per_group=per_group)
    groups = groups_of(moe) if per_group else [list(range(moe.num_experts))]
    hold = moe.twins.hold if moe.twins else None
    if isinstance(operation, SpecialiseCloneSpec):
        check_clone(moe)
        hold = 0.0
    else:
        check_source(moe, (group[operation.source] for group in groups))
    order = tuple(e for group in groups for e in (*group, group[operation.source]))
    return _with(spec, num_experts=len(order), twins=_twins(moe, order, hold))


def attention_packs(spec: ModelSpec) -> bool:
    """Whether the maps around attention can be packed: those of latent attention and of gated heads cannot."""
    return spec.attention.mla is None and not spec.attention.head_gate


def _packed(spec: ModelSpec, operation: QuantiseSpec) -> ModelSpec:
    if operation.attention is not None and not attention_packs(spec):
        raise placed("attention", CORE.say("attention_unpackable"))
    if operation.rotate:
        _check_rotates(spec, operation)
    # A packed head is no embedding.
    tied = spec.tie_word_embeddings and operation.head is None
    parts = (operation.quantisation, operation.attention, operation.head)
    packed = {name: part and part.model_dump() for name, part in zip(PACKINGS, parts, strict=True)}
    return _with(spec.model_copy(update={"tie_word_embeddings": tied}), **packed)


def _check_rotates(spec: ModelSpec, operation: QuantiseSpec) -> None:
    moe = _mixture(spec)
    if spec.tie_word_embeddings and operation.head is None:
        raise placed("rotate", CORE.say("rotates_own_head"))
    # These hand on what a norm gave, whose weights are no longer in it.
    if moe.gate.kind == "soft" or (moe.capacity is not None and moe.capacity.overflow == "residual"):
        raise placed("rotate", CORE.say("rotates_no_mix"))


def _grown(spec: ModelSpec, moe: MoeSpec, operation: GrowSpec) -> ModelSpec:
    try:
        times = doublings(moe.num_experts, operation.num_experts)
    except SpecError as error:
        raise placed("num_experts", str(error)) from error
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
            raise placed("method", sentence)
        changes["moe_intermediate_size"] = moe.moe_intermediate_size // 2**times
    return _with(spec, **changes)


def gate_of_pairs(moe: MoeSpec, times: int = 1) -> dict[str, Any]:
    """The gate that gives each of two copies half of the weight, so many times."""
    return gate_for(moe, moe.top_k * 2**times)


def gate_for(moe: MoeSpec, top_k: int) -> dict[str, Any]:
    """The gate whose weights sum to as much with another number of experts a token."""
    gate = moe.gate.model_dump()
    # Shares of all experts do by themselves, and so do weights that are made to sum to one; scores of their own do not.
    if isinstance(moe.gate, SigmoidGroups) and moe.gate.scores != "softmax" and not moe.norm_topk_prob:
        gate["routed_scaling_factor"] *= moe.top_k / top_k
    return gate


def biases_weigh_on_shares(moe: MoeSpec) -> bool:
    """Whether a balancing bias is added to shares of all experts, which get smaller the more experts there are."""
    gate = moe.gate
    if not isinstance(gate, LinearGate) or not gate.selection_bias or isinstance(gate, Sparsemax | Base):
        return False
    return not isinstance(gate, SigmoidGroups) or gate.scores == "softmax"


def _distilled(spec: ModelSpec, moe: MoeSpec, operation: DistilSpec) -> ModelSpec:
    width = operation.moe_intermediate_size or moe.moe_intermediate_size
    for field, asked, own in (
        ("num_experts", operation.num_experts, moe.num_experts),
        ("moe_intermediate_size", width, moe.moe_intermediate_size),
    ):
        if asked > own:
            raise placed(field, CORE.say("student_larger", asked=asked, own=own))
    top_k = operation.top_k or min(moe.top_k, operation.num_experts)
    changes: dict[str, Any] = {
        "num_experts": operation.num_experts,
        "top_k": top_k,
        "moe_intermediate_size": width,
    }
    changes["gate"] = gate_for(moe, top_k)
    if operation.num_hidden_layers is not None:
        # Which layers stay hangs on the weights; here the lowest of each kind do.
        spec = with_kept(spec, kept_layers(spec, operation.num_hidden_layers))
    return _with(spec, **changes, twins=None)


def _woken(spec: ModelSpec, moe: MoeSpec, operation: WakeExpertSpec) -> ModelSpec:
    check_idle(moe)
    check_chosen(moe, "expert", operation.expert, per_group=False)
    return _with(spec)


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
        raise placed("moe_layers", CORE.say("layers_are_kept"))
    check_composable(moe)
    num_experts, top_k = count * moe.num_experts, operation.top_k or moe.top_k
    if top_k > num_experts:
        raise placed("top_k", CORE.say("top_k_over_experts", top_k=top_k, num_experts=num_experts))
    changes: dict[str, Any] = {"num_experts": num_experts, "top_k": top_k, "gate": moe.gate.model_dump()}
    # Groups stay of one size, and each of them is of one model: as many are chosen as the models choose.
    if isinstance(moe.gate, SigmoidGroups) and moe.gate.num_groups > 1:
        changes["gate"]["num_groups"] = count * moe.gate.num_groups
    if moe.twins is not None:
        own = range(0, num_experts, moe.num_experts)
        roots = tuple(first + root for first in own for root in moe.twins.roots)
        changes["twins"] = {"roots": roots, "hold": moe.twins.hold}
    return _with(spec, **changes)
