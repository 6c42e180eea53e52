"""Halves: experts of one gate row that answer differently, and whether a token may be given a part of them.

Splitting an expert, or upcycling in slices, leaves several experts with one gate row. Their logits are equal but for the
rounding of one product, so that a token must have all of them or none. Where its last place falls among them, rounding
chooses, which hangs on the batch that the token is in and on how experts are numbered. Copies of equal weights are told
apart by nothing, and need not be; twins stand for one another, so that each set of them counts as one expert.

Shapes: L expert layers, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moe_core.errors import SpecError
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.parts import per_expert
from moe_core.spec import MoeSpec
from moe_core.spec.demands import num_groups_of
from moe_core.spec.gate import SigmoidGroups, TopP

# What a gate chooses by, besides the token.
ROWS = ("router.weight", "router.bias", "router.selection_bias")


@dataclass(frozen=True, slots=True)
class _Kin:
    """Experts that share rows by way of their sets of twins; `size` sets, `mixed` where not all of them have one row."""

    experts: tuple[int, ...]
    size: int
    mixed: bool
    are_halves: bool


def sharing(layer: MoeMlp) -> list[list[int]]:
    """The experts of each gate row of a layer, biases included, both in ascending order."""
    by_row: dict[bytes, list[int]] = {}
    for expert, row in enumerate(_rows(layer)):
        by_row.setdefault(row, []).append(expert)
    return list(by_row.values())


def together_with(layer: MoeMlp, expert: int, together: int) -> list[int]:
    """The experts of one group of the gate that share the row of one of them.

    Raises SpecError where they are not as many as go together; one goes alone whatever it shares.
    """
    if together == 1:
        return [expert]
    found = next(company for company in companies(layer) if expert in company)
    if found == [expert]:
        raise SpecError.of("not_shared", expert=expert, layer=layer.layer)
    if len(found) != together:
        raise SpecError.of("not_together", expert=expert, layer=layer.layer, size=len(found))
    return found


def companies(layer: MoeMlp) -> list[list[int]]:
    """The experts of each gate row, those of each group of the gate by themselves."""
    size = layer.moe.num_experts // num_groups_of(layer.moe)
    found: dict[tuple[int, int], list[int]] = {}
    for row, experts in enumerate(sharing(layer)):
        for expert in experts:
            found.setdefault((row, expert // size), []).append(expert)
    return list(found.values())


def function_kept(model: Decoder) -> dict[str, Any]:
    """What growth tells of a model: whether it keeps what it says, and if not which experts rounding chooses between."""
    found = [(layer.layer, undecided) for layer in model.moe_layers() if (undecided := undecided_in(layer))]
    if not found:
        return {"keeps_function": True}
    layer, undecided = found[0]
    told = {"layers": len(found), "layer": layer, "experts": undecided[0]}
    return {"keeps_function": False, "undecided": told}


def check_halves(before: Decoder, after: Decoder, gone_LG: Sequence[Collection[int]]) -> None:
    """Raise SpecError where an edit leaves halves of which a token may be given a part, and there were none before.

    `gone_LG` has the experts of each layer that went, by their old numbers.
    """
    for old, new, gone in zip(before.moe_layers(), after.moe_layers(), gone_LG, strict=True):
        if not undecided_in(new) or undecided_in(old):
            continue
        broken = [company for company in companies(old) if len(company) > 1 and set(company) & set(gone)]
        if broken and not _has_twins(old.moe):
            raise SpecError.of(
                "halves_apart", experts=_named(broken[0]), layer=old.layer, size=len(broken[0])
            )
        raise SpecError.of("halves_undecided", experts=_named(undecided_in(new)[0]), layer=old.layer)


def check_merged_halves(before: Decoder, after: Decoder) -> None:
    """Raise SpecError where merging leaves halves of which a token may be given a part, and there were none before."""
    for old, new in zip(before.moe_layers(), after.moe_layers(), strict=True):
        if (found := undecided_in(new)) and not undecided_in(old):
            raise SpecError.of("halves_unlearnt", experts=_named(found[0]), layer=new.layer)


def check_learns_alone(model: Decoder, expert_L: Sequence[int]) -> None:
    """Raise SpecError where the gate row of an expert of each layer could not change without that of its other halves."""
    for layer, expert in zip(model.moe_layers(), expert_L, strict=True):
        kin = _kin_of(layer, sharing(layer))
        own = next(one for one in kin if expert in one.experts)
        chooses = layer.moe.top_k < sum(one.size for one in kin)
        if own.are_halves and chooses and not undecided_in(layer):
            raise SpecError.of("halves_undecided", experts=_named(own.experts), layer=layer.layer)


def undecided_in(layer: MoeMlp) -> list[list[int]]:
    """The halves of a layer of which a token may be given a part, those of each expert together.

    Gates whose choice hangs on the batch anyway have none.
    """
    moe = layer.moe
    if moe.gate.sees_the_batch:
        return []
    rows = sharing(layer)
    if len(rows) == moe.num_experts:
        return []
    kin, parted = _kin_of(layer, rows), {}
    for one in (one for one in kin if one.are_halves):
        alike = (one.size, one.mixed, _spans_groups(moe, one))
        if alike not in parted:
            parted[alike] = _may_part(moe, one, kin)
    return [
        list(one.experts)
        for one in kin
        if one.are_halves and parted[(one.size, one.mixed, _spans_groups(moe, one))]
    ]


def _may_part(moe: MoeSpec, one: _Kin, kin: Iterable[_Kin]) -> bool:
    """Whether a token's last place can fall among these: others fill all places but some that are too few for them."""
    if isinstance(moe.gate, TopP) or _spans_groups(moe, one):
        return True
    if num_groups_of(moe) == 1 and moe.top_k >= sum(other.size for other in kin):
        return False
    # Bit s: whether others can fill s places. Those of one row come whole.
    filled = 1
    for other in kin:
        steps = [1] * (other.size - (2 if other is one else 0)) if other.mixed else [other.size]
        for step in steps if other is not one or one.mixed else ():
            filled |= filled << step
    return any(filled >> places & 1 for places in range(max(0, moe.top_k - one.size + 1), moe.top_k))


def _spans_groups(moe: MoeSpec, one: _Kin) -> bool:
    """Whether the gate may take a group with some of these and leave one with others."""
    size = moe.num_experts // num_groups_of(moe)
    leaves = isinstance(moe.gate, SigmoidGroups) and moe.gate.topk_group < moe.gate.num_groups
    return leaves and len({expert // size for expert in one.experts}) > 1


def _kin_of(layer: MoeMlp, rows: Sequence[Sequence[int]]) -> list[_Kin]:
    """The experts of a layer by what they share: twins a set, sets a row."""
    roots = layer.moe.twins.roots if layer.moe.twins else tuple(range(layer.moe.num_experts))
    joined = list(roots)
    for experts in rows:
        first, *more = dict.fromkeys(joined[expert] for expert in experts)
        if more:
            joined = [first if root in more else root for root in joined]
    experts_of: dict[int, list[int]] = {}
    rows_of: dict[int, list[Sequence[int]]] = {}
    for expert, kin in enumerate(joined):
        experts_of.setdefault(kin, []).append(expert)
    for row in rows:
        rows_of.setdefault(joined[row[0]], []).append(row)
    return [
        _Kin(
            experts=tuple(experts),
            size=len({roots[expert] for expert in experts}),
            mixed=len(rows_of[kin]) > 1,
            are_halves=any(
                len({roots[expert] for expert in row}) > 1 and not _alike(layer, row) for row in rows_of[kin]
            ),
        )
        for kin, experts in experts_of.items()
    ]


def _alike(layer: MoeMlp, experts: Sequence[int]) -> bool:
    """Whether experts have the same weights, bit for bit."""
    weights = [tensor for name, tensor in per_expert(layer).items() if name.startswith("experts.")]
    return all(torch.equal(tensor[experts[0]], tensor[other]) for other in experts[1:] for tensor in weights)


def _rows(layer: MoeMlp) -> list[bytes]:
    """What the gate has of each expert, as bytes that are equal where its logits are; -0 is 0."""
    tensors = per_expert(layer)
    num_experts = layer.moe.num_experts
    parts = [
        tensors[name].detach().float().cpu().add(0.0).view(num_experts, -1)
        for name in ROWS
        if name in tensors
    ]
    return [row.tobytes() for row in torch.cat(parts, dim=1).numpy()]


def _has_twins(moe: MoeSpec) -> bool:
    return moe.twins is not None and any(moe.twins.has_twins(expert) for expert in range(moe.num_experts))


def _named(experts: Iterable[int]) -> str:
    return ", ".join(map(str, experts))
