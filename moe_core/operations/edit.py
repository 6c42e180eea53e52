"""Remove an expert, merge two: what is lost per domain is measured, and refused where it is too much.

All other experts and their gate rows stay bit for bit.

Shapes: L expert layers, E experts, N tokens, D model width.
Source: Lu et al. 2024, "Not All Experts are Equal" (removal); Li et al. 2024, "Merge, Then Compress" (merging).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.align import ExpertWeights, aligned, mean_of
from moe_core.operations.measure import compare, hidden_of, listening, loads, mask_of
from moe_core.operations.parts import changeable, chosen_of, moe_part, per_expert, spec_with, with_experts
from moe_core.operations.prompts import Prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec import ModelSpec
from moe_core.spec.operations import MergeExpertsSpec, RemoveExpertSpec

# Tokens that tell what neurons do; more change little.
ALIGNMENT_TOKENS = 512


def preview_removal(
    model: Decoder, spec: RemoveExpertSpec, prompts: Prompts, watch: Watch = unwatched
) -> dict[str, Any]:
    """What removing would cost, measured with the expert hidden from every token; the model is not touched."""
    return _preview(model, _to_remove(model, spec, prompts, watch), prompts, watch)


def _preview(model: Decoder, experts: list[int], prompts: Prompts, watch: Watch) -> dict[str, Any]:
    return {"experts": experts, **compare(model, model, prompts, mask_of(model, experts), watch)}


@torch.no_grad()
def remove_expert(
    model: Decoder, spec: RemoveExpertSpec, prompts: Prompts | None = None, watch: Watch = unwatched
) -> tuple[Decoder, dict[str, Any]]:
    """The model without one expert of each layer, and what was measured before that was done.

    The rest take its share: outputs are those of the gate renormalised over them. Raises SpecError when no expert is
    named and there are no prompts, when too few would be left, or when a domain would lose more than is allowed.
    """
    moe = changeable(model)
    experts = _to_remove(model, spec, prompts, watch)
    report: dict[str, Any] = {"kind": spec.kind, "experts": experts, "keeps_function": False}
    if prompts is not None:
        report |= _preview(model, experts, prompts, watch)
    _check_loss(report, spec.max_loss_increase)
    keep_LE = [[e for e in range(moe.num_experts) if e != removed] for removed in experts]
    return with_experts(model, keep_LE, _fewer(model, keep_LE)), report


@torch.no_grad()
def merge_experts(
    model: Decoder, spec: MergeExpertsSpec, prompts: Prompts | None = None, watch: Watch = unwatched
) -> tuple[Decoder, dict[str, Any]]:
    """The model with two experts of each layer merged in the place of the first, neurons aligned.

    Weights and gate rows are means by usage on the prompts, or half and half. Raises SpecError as removal does.
    """
    moe = changeable(model)
    first, second = chosen_of(model, spec.first), chosen_of(model, spec.second)
    for layer, one, other in zip(moe.moe_layers, first, second, strict=True):
        if one == other:
            raise SpecError(f"expert {one} of layer {layer} cannot be merged with itself; name two")
    usage_L2 = _usage(model, spec, prompts, first, second, watch)
    keep_LE = [[e for e in range(moe.num_experts) if e != gone] for gone in second]
    merged = with_experts(model, keep_LE, _fewer(model, keep_LE))
    hidden_L = router_inputs(model, prompts, ALIGNMENT_TOKENS, watch) if prompts is not None else {}
    for row, (old, new) in enumerate(zip(model.moe_layers(), merged.moe_layers(), strict=True)):
        place = keep_LE[row].index(first[row])
        _merge_into(new, place, old, (first[row], second[row]), usage_L2[row], hidden_L.get(old.layer))
        watch("align", row + 1, len(first))
    report = {
        "kind": spec.kind,
        "first": first,
        "second": second,
        "weights": usage_L2,
        "keeps_function": False,
    }
    if prompts is not None:
        report |= compare(model, merged, prompts, watch=watch)
    _check_loss(report, spec.max_loss_increase)
    return merged, report


@torch.no_grad()
def router_inputs(
    model: Decoder, prompts: Prompts, at_most: int, watch: Watch = unwatched
) -> dict[int, Tensor]:
    """Layer → what its router sees of up to so many real tokens, evenly spread over the prompts: (N, D)."""
    seen: dict[int, list[Tensor]] = {}
    real_T = prompts.real_T
    stride, done = max(1, -(-int(real_T.sum()) // at_most)), 0
    for batch in prompts.batches():

        def keep(layer: MoeMlp, x_TD: Tensor, real_T: Tensor = batch.real_T) -> None:
            seen.setdefault(layer.layer, []).append(x_TD[real_T])

        with listening(model, keep):
            hidden_of(model, batch)
        done += len(batch)
        watch("inputs", done, len(prompts))
    return {layer: torch.cat(parts)[::stride] for layer, parts in seen.items()}


def _to_remove(
    model: Decoder, spec: RemoveExpertSpec, prompts: Prompts | None, watch: Watch = unwatched
) -> list[int]:
    moe = changeable(model)
    seen = len(set(moe.twins.roots)) if moe.twins else moe.num_experts
    if moe.num_experts - 1 < moe.top_k or (moe.twins is None and seen - 1 < moe.top_k):
        raise SpecError(
            f"{moe.num_experts} experts cannot lose one when top_k is {moe.top_k}; lower top_k first"
        )
    if spec.expert is not None:
        return chosen_of(model, spec.expert)
    if prompts is None:
        raise SpecError("no expert is named; give prompts, so that the least used one can be found")
    return [int(load_E.argmin()) for load_E in loads(model, prompts, watch)]


def _fewer(model: Decoder, keep_LE: list[list[int]]) -> ModelSpec:
    moe = moe_part(model)
    changes: dict[str, Any] = {"num_experts": moe.num_experts - 1}
    if moe.twins is not None:
        kept = {moe.twins.taking(tuple(keep)) for keep in keep_LE}
        gone = {e for keep in keep_LE for e in set(range(moe.num_experts)) - set(keep)}
        crowded = [e for e in gone if moe.twins.roots.count(moe.twins.roots[e]) > 2]
        if len(kept) > 1 or (crowded and moe.twins.hold is None):
            raise SpecError(
                "twins are the same in every layer and a hash deals tokens among them; "
                "name one expert for all layers, or release the twins to the gate first (hold 0)"
            )
        changes["twins"] = {"roots": kept.pop(), "hold": moe.twins.hold}
    return spec_with(model.spec, **changes)


def _check_loss(report: dict[str, Any], at_most: float | None) -> None:
    if at_most is None:
        return
    if "loss_change" not in report:
        raise SpecError("max_loss_increase needs prompts to measure with; give them or leave it out")
    worst = max(report["loss_change"], key=report["loss_change"].__getitem__)
    if report["loss_change"][worst] > at_most:
        raise SpecError(
            f"domain {worst!r} would lose {report['loss_change'][worst]:.4f} nats; at most {at_most} are allowed. "
            "Choose other experts or raise max_loss_increase"
        )


def _usage(
    model: Decoder,
    spec: MergeExpertsSpec,
    prompts: Prompts | None,
    first: list[int],
    second: list[int],
    watch: Watch,
) -> list[tuple[float, float]]:
    """Each layer's two shares of the merged expert."""
    if spec.weights == "even" or prompts is None:
        return [(0.5, 0.5)] * len(first)
    shares = []
    for load_E, one, other in zip(loads(model, prompts, watch).double(), first, second, strict=True):
        total = float(load_E[one] + load_E[other])
        share = float(load_E[one]) / total if total else 0.5
        shares.append((share, 1.0 - share))
    return shares


def _merge_into(
    new: MoeMlp,
    place: int,
    old: MoeMlp,
    pair: tuple[int, int],
    shares: tuple[float, float],
    hidden_ND: Tensor | None,
) -> None:
    one, other = (ExpertWeights.of(old, expert) for expert in pair)
    mean_of([one, aligned(one, other, hidden_ND)], list(shares)).put(new, place)
    before = per_expert(old)
    for name, tensor in per_expert(new).items():
        if name.startswith("router."):
            tensor[place] = shares[0] * before[name][pair[0]] + shares[1] * before[name][pair[1]]
