"""More experts, the same function at the moment of growth.

Copies that share a gate row and compete for the same k places would push other experts out: that is not growth but
damage. Three ways keep the function:

* twin: copies are twins, each token sees one of them (`moe_core.routers.twins`); top-k and the work stay.
* double_k: a token takes both copies; top-k doubles, each copy has half the weight.
* split: each expert is cut in two halves of its neurons, both taken; top-k doubles, the work stays, the way back is
  doubled because each half has half the weight.

In a model where rounding chooses between halves of an expert (`moe_core.operations.halves`) it would choose otherwise
among the grown ones: the report says `keeps_function` false and names them.

New experts come after the old ones: expert e of E has its copy at E + e. Where the gate has groups, each group grows by
itself and the new ones come after the old ones of their group; how many groups there are and are chosen stays.

Shapes: L expert layers, E experts, F expert width, D model width.
Source: Chen et al. 2016, "Net2Net" (growth that keeps the function); Wu et al. 2022, "Residual Mixture of Experts"; the
halving is that of fine-grained experts, Dai et al. 2024, "DeepSeekMoE".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moe_core.model.decoder import Decoder
from moe_core.operations.halves import function_kept
from moe_core.operations.parts import (
    check_spec,
    foretold,
    moe_part,
    rebuilt,
    spec_with,
    with_experts,
)
from moe_core.spec import ModelSpec, MoeSpec
from moe_core.spec.demands import check_count, doublings, groups_of, spread
from moe_core.spec.foresee import biases_weigh_on_shares, gate_of_pairs
from moe_core.spec.operations import AddExpertSpec, GrowSpec, ReleaseTwinsSpec
from moe_core.spec.twins import TwinsSpec

# What a split cuts; everything else of an expert is copied. So is the bias of its output: both halves add it, with half
# the weight each.
WEIGHTS = frozenset({"experts.gate_up_E2FD", "experts.gate_up_bias_E2F", "experts.down_EDF"})


@torch.no_grad()
def grow(model: Decoder, spec: GrowSpec) -> tuple[Decoder, dict[str, Any]]:
    """The model with `spec.num_experts` experts, doubled as often as that takes; the given one is left as it was.

    Raises SpecError when the number is not the old one times a power of two, or the method does not fit.
    """
    check_spec(spec, GrowSpec)
    foretold(model, spec)
    moe, grown = moe_part(model), model
    for _ in range(doublings(moe.num_experts, spec.num_experts)):
        grown = _doubled(grown, spec.method)
    now = moe_part(grown)
    return grown, {
        "kind": spec.kind,
        "method": spec.method,
        "num_experts": [moe.num_experts, now.num_experts],
        "top_k": [moe.top_k, now.top_k],
        "moe_intermediate_size": [moe.moe_intermediate_size, now.moe_intermediate_size],
        **function_kept(model),
    }


@torch.no_grad()
def add_expert(model: Decoder, spec: AddExpertSpec) -> tuple[Decoder, dict[str, Any]]:
    """The model with one more expert in each layer: the last, a twin of `spec.source`. All others stay bit for bit.

    With `spec.per_group` one more in each group of each layer: the last of its group.
    """
    check_spec(spec, AddExpertSpec)
    told = foretold(model, spec)
    moe = moe_part(model)
    sources = spread(moe, spec.source, per_group=spec.per_group)[0]
    order = _each_followed_by(moe, [[source] for source in sources])
    new = [place for place, source in enumerate(order) if source in sources and source in order[:place]]
    added = with_experts(model, [order] * len(moe.moe_layers), told)
    return added, {
        "kind": spec.kind,
        "expert": new if spec.per_group else new[0],
        "source": sources if spec.per_group else sources[0],
        **function_kept(model),
        "num_experts": [moe.num_experts, len(order)],
    }


@torch.no_grad()
def release_twins(model: Decoder, spec: ReleaseTwinsSpec) -> tuple[Decoder, dict[str, Any]]:
    """The model with another hold on its twins: lower it step by step to 0 and the gate chooses between them.

    What it says stays as long as twins are equal; twins that have grown apart may answer otherwise. Raises SpecError for
    a model without twins.
    """
    check_spec(spec, ReleaseTwinsSpec)
    released = rebuilt(model, foretold(model, spec))
    moe = moe_part(model)
    assert moe.twins is not None
    return released, {
        "kind": spec.kind,
        "hold": [moe.twins.hold, spec.hold],
        "twins": sum(moe.twins.has_twins(expert) for expert in range(moe.num_experts)),
    }


def _each_followed_by(moe: MoeSpec, added: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The experts of each group, and after them the given ones."""
    return tuple(e for group, more in zip(groups_of(moe), added, strict=True) for e in (*group, *more))


def _doubled_order(moe: MoeSpec) -> tuple[int, ...]:
    return _each_followed_by(moe, groups_of(moe))


def _doubled(model: Decoder, method: str) -> Decoder:
    moe = moe_part(model)
    order = _doubled_order(moe)
    changes: dict[str, Any] = {"num_experts": len(order)}
    if method == "twin":
        changes["twins"] = _with_twins(moe, order)
    else:
        changes |= {"top_k": 2 * moe.top_k, "gate": gate_of_pairs(moe)}
    if method == "split":
        width = moe.moe_intermediate_size // 2
        grown = _split(model, spec_with(model.spec, **changes, moe_intermediate_size=width))
    else:
        grown = with_experts(model, [order] * len(moe.moe_layers), spec_with(model.spec, **changes))
    if method != "twin" and biases_weigh_on_shares(moe):
        for layer in grown.moe_layers():
            layer.router.tensors["selection_bias"].mul_(0.5)
    return grown


def _with_twins(moe: MoeSpec, order: tuple[int, ...]) -> dict[str, Any]:
    check_count(len(order))
    twins = moe.twins or TwinsSpec(roots=tuple(range(moe.num_experts)))
    return TwinsSpec.parse({"roots": twins.taking(order), "hold": twins.hold}).model_dump()


def _split(model: Decoder, spec: ModelSpec) -> Decoder:
    """An expert has the first half of its neurons, its copy the second."""
    moe = moe_part(model)
    half, order = moe.moe_intermediate_size // 2, _doubled_order(moe)
    is_copy = [source in order[:place] for place, source in enumerate(order)]
    grown = with_experts(model, [order] * len(moe.moe_layers), spec, filled_by_caller=WEIGHTS)
    for old, new in zip(model.moe_layers(), grown.moe_layers(), strict=True):
        for part in (0, 1):
            # Copies stand in the order of what they copy, and so do those copied.
            to = [place for place, copied in enumerate(is_copy) if copied == part]
            own = slice(part * half, (part + 1) * half)
            for name in ("gate_up_E2FD", "gate_up_bias_E2F"):
                if (whole := getattr(old.experts, name)) is not None:
                    getattr(new.experts, name)[to] = whole.unflatten(1, (2, -1))[:, :, own].flatten(1, 2)
            new.experts.down_EDF[to] = 2.0 * old.experts.down_EDF[:, :, own]
    return grown
