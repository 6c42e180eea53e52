"""Remove an expert, merge two: what is lost per domain is measured, and refused where it is too much.

All other experts and their gate rows stay bit for bit.

Shapes: L expert layers, E experts, N tokens, D model width.
Source: Lu et al. 2024, "Not All Experts are Equal" (removal); Li et al. 2024, "Merge, Then Compress" (merging).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.align import ExpertWeights, aligned, mean_of
from moe_core.operations.halves import check_halves, companies, together_with
from moe_core.operations.parts import (
    check_spec,
    foretold,
    moe_part,
    per_expert,
    spec_with,
    with_experts,
)
from moe_core.operations.passes import compare, hidden_of, listening, loads
from moe_core.operations.prompts import Prompts, check_prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.spec import MoeSpec
from moe_core.spec.demands import groups_of, spread
from moe_core.spec.fewer import fewer, places_to_go, without
from moe_core.spec.operations import MergeExpertsSpec, RemoveExpertSpec

# Tokens that tell what neurons do; more change little.
ALIGNMENT_TOKENS = 512
# Two experts of a layer, of which the first stays.
Pair = tuple[int, int]


@torch.no_grad()
def preview_removal(
    model: Decoder, spec: RemoveExpertSpec, prompts: Prompts, watch: Watch = unwatched
) -> dict[str, Any]:
    """What removing would cost, measured on the model as it would be made; the given one is not touched."""
    check_spec(spec, RemoveExpertSpec)
    check_prompts(prompts)
    experts = _to_remove(model, spec, prompts, watch)
    return {"experts": _told(experts), **compare(model, _removed(model, experts), prompts, watch=watch)}


def _removed(model: Decoder, experts: list[list[int]]) -> Decoder:
    """The model made: a hidden expert would still count for the capacity of the others, and for the tokens they choose."""
    moe = moe_part(model)
    left = spec_with(model.spec, **fewer(moe, experts, "expert"))
    removed = with_experts(model, without(moe.num_experts, experts), left)
    check_halves(model, removed, experts)
    return removed


def _told(experts_LG: list[list[int]]) -> list[Any]:
    """One number a layer, or a list where there are several: one of each group, or all that share a gate row."""
    return [experts_G if len(experts_G) > 1 else experts_G[0] for experts_G in experts_LG]


@torch.no_grad()
def remove_expert(
    model: Decoder, spec: RemoveExpertSpec, prompts: Prompts | None = None, watch: Watch = unwatched
) -> tuple[Decoder, dict[str, Any]]:
    """The model without one expert of each layer (`per_group`: of each group), and what it lost.

    The rest take its share: outputs are those of the gate renormalised over them. With `together` above 1 all experts go
    that share a gate row with it. Raises SpecError when no expert is named and there are no prompts, when too few would be
    left, when of the halves of an expert some would be left behind, or when a domain would lose more than is allowed.
    """
    check_spec(spec, RemoveExpertSpec)
    check_prompts(prompts, or_none=True)
    experts = _to_remove(model, spec, prompts, watch)
    report: dict[str, Any] = {"kind": spec.kind, "experts": _told(experts), "keeps_function": False}
    removed = _removed(model, experts)
    if prompts is not None:
        report |= compare(model, removed, prompts, watch=watch)
    _check_loss(report, spec.max_loss_increase)
    return removed, report


@torch.no_grad()
def merge_experts(
    model: Decoder, spec: MergeExpertsSpec, prompts: Prompts | None = None, watch: Watch = unwatched
) -> tuple[Decoder, dict[str, Any]]:
    """The model with two experts of each layer (`per_group`: of each group) merged in the place of the first.

    Neurons are aligned; weights and gate rows are means by usage on the prompts, or half and half (`weighed_by` in the
    report); equal gate rows stay as they are. With `together` above 1 each of the experts that share the first's gate row
    takes one of those that share the second's. Raises SpecError as removal does.
    """
    check_spec(spec, MergeExpertsSpec)
    check_prompts(prompts, or_none=True)
    told = foretold(model, spec)
    moe = moe_part(model)
    first, second = (
        _with_company(model, spread(moe, one, per_group=spec.per_group), spec.together)
        for one in (spec.first, spec.second)
    )
    _check_apart(first, second)
    pairs_L = [list(zip(*both, strict=True)) for both in zip(first, second, strict=True)]
    usage_L = _usage(model, spec, prompts, pairs_L, watch)
    keep_LE = without(moe.num_experts, second)
    merged = with_experts(model, keep_LE, told)
    hidden_L = router_inputs(model, prompts, ALIGNMENT_TOKENS, watch) if prompts is not None else {}
    for row, (old, new) in enumerate(zip(model.moe_layers(), merged.moe_layers(), strict=True)):
        for pair, shares in zip(pairs_L[row], usage_L[row], strict=True):
            _merge_into(new, keep_LE[row].index(pair[0]), old, pair, shares, hidden_L.get(old.layer))
        watch("align", row + 1, len(first))
    check_halves(model, merged, [[*one, *other] for one, other in zip(first, second, strict=True)])
    report = {
        "kind": spec.kind,
        "first": _told(first),
        "second": _told(second),
        "weights": [shares if len(shares) > 1 else shares[0] for shares in usage_L],
        # Without prompts nobody's use is known.
        "weighed_by": "even" if prompts is None else spec.weights,
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
) -> list[list[int]]:
    foretold(model, spec)
    moe = moe_part(model)
    if spec.expert is not None:
        return _with_company(model, spread(moe, spec.expert, per_group=spec.per_group), spec.together)
    if prompts is None:
        raise SpecError.of("least_used_unknown")
    load_LE = loads(model, prompts, watch)
    if spec.together > 1:
        return [
            _least_used_company(moe, layer, load_E, spec.together)
            for layer, load_E in zip(model.moe_layers(), load_LE, strict=True)
        ]
    if moe.twins is None:
        return [
            [min(group, key=lambda e: (int(load_E[e]), e)) for group in groups_of(moe)] for load_E in load_LE
        ]
    # Twins are the same in every layer, and so is what goes: what all layers together use least of what may.
    per_place = load_LE.sum(0).view(-1, len(groups_of(moe)[0])).sum(0)
    places = places_to_go(moe, per_group=spec.per_group)
    least = min(places, key=lambda place: (int(per_place[place]), place))
    return spread(moe, least, per_group=spec.per_group)


def _with_company(model: Decoder, chosen_LG: list[list[int]], together: int) -> list[list[int]]:
    """The chosen experts of each layer with those that share their gate rows."""
    return [
        [e for expert in chosen_G for e in together_with(layer, expert, together)]
        for layer, chosen_G in zip(model.moe_layers(), chosen_LG, strict=True)
    ]


def _least_used_company(moe: MoeSpec, layer: MoeMlp, load_E: Tensor, together: int) -> list[int]:
    """Of each group of the gate those experts of one gate row, so many of them, that are used least together."""
    gone: list[int] = []
    found = [company for company in companies(layer) if len(company) == together]
    for group in groups_of(moe):
        mine = [company for company in found if company[0] in group]
        if not mine:
            raise SpecError.of("none_together", layer=layer.layer, together=together)
        least: list[int] = min(mine, key=lambda company: (int(load_E[company].sum()), company))
        gone += least
    return gone


def _check_apart(first_LG: list[list[int]], second_LG: list[list[int]]) -> None:
    """Experts of one gate row go together, and none of them into itself."""
    for first, second in zip(first_LG, second_LG, strict=True):
        if both := set(first) & set(second):
            raise SpecError.of("merged_with_itself", expert=min(both))


def _check_loss(report: dict[str, Any], at_most: float | None) -> None:
    if at_most is None:
        return
    change = report.get("loss_change")
    if not change:
        raise SpecError.of("loss_unmeasured")
    # No comparison with NaN is true, so that it would pass any limit.
    for domain in change:
        before, after = report["loss_before"][domain], report["loss_after"][domain]
        if not math.isfinite(before) or not math.isfinite(after):
            raise SpecError.of("domain_loss_not_finite", domain=domain, before=before, after=after)
    worst = max(change, key=change.__getitem__)
    if change[worst] > at_most:
        raise SpecError.of("domain_loses", domain=worst, loss=f"{change[worst]:.4f}", most=at_most)


def _usage(
    model: Decoder,
    spec: MergeExpertsSpec,
    prompts: Prompts | None,
    pairs_L: list[list[Pair]],
    watch: Watch,
) -> list[list[tuple[float, float]]]:
    """The two shares of every merged expert of each layer."""
    if spec.weights == "even" or prompts is None:
        return [[(0.5, 0.5)] * len(pairs) for pairs in pairs_L]
    load_LE = loads(model, prompts, watch).double()
    shares_L = []
    for load_E, pairs in zip(load_LE, pairs_L, strict=True):
        load_P2 = load_E[torch.tensor(pairs)]
        # Experts of one gate row keep one: they are weighed alike, by what they have together.
        sums = load_P2.unflatten(0, (-1, spec.together)).sum(1).repeat_interleave(spec.together, dim=0)
        shares_L.append([_shares(one, other) for one, other in sums.tolist()])
    return shares_L


def _shares(one: float, other: float) -> tuple[float, float]:
    share = one / (one + other) if one + other else 0.5
    return share, 1.0 - share


def _merge_into(
    new: MoeMlp,
    place: int,
    old: MoeMlp,
    pair: Pair,
    shares: tuple[float, float],
    hidden_ND: Tensor | None,
) -> None:
    one, other = (ExpertWeights.of(old, expert) for expert in pair)
    mean_of([one, aligned(one, other, hidden_ND)], list(shares)).put(new, place)
    before = per_expert(old)
    for name, tensor in per_expert(new).items():
        if name.startswith("router."):
            one_row, other_row = before[name][pair[0]], before[name][pair[1]]
            mean = shares[0] * one_row + shares[1] * other_row
            # Two shares of one number may round to another, and others share the row.
            tensor[place] = torch.where(one_row == other_row, one_row, mean)
