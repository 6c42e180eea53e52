"""Halves of an expert share a gate row: a token has all of them or none, through every operation, or it is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations import (
    add_expert,
    distil,
    grow,
    merge_experts,
    preview_removal,
    release_twins,
    remove_expert,
    specialise_clone,
    upcycle,
    wake_expert,
)
from moe_core.operations.halves import undecided_in
from moe_core.operations.parts import per_expert, spec_with, tensors_of, with_experts
from moe_core.spec import LayoutSpec
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import (
    AddExpertSpec,
    DistilSpec,
    GrowSpec,
    MergeExpertsSpec,
    ReleaseTwinsSpec,
    RemoveExpertSpec,
    SpecialiseCloneSpec,
    UpcycleSpec,
    WakeExpertSpec,
)
from tests.moe_core.operations.models import distance, mixture, some_prompts
from tests.moe_core.tiny import STD, tiny_family, tiny_llama, tiny_mixtral

IDS = torch.randint(3, 97, (3, 21), generator=torch.Generator().manual_seed(1))
FAMILIES = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss", "step3p5")


def model_of(family: str, seed: int = 3) -> Decoder:
    if family == "mixtral":
        return random_decoder(tiny_mixtral(), seed, STD)
    model = random_decoder(tiny_family(family), seed, STD)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            if "bias" in name and ".mlp." in name:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def split(model: Decoder) -> Decoder:
    assert model.spec.moe is not None
    return grow(model, GrowSpec(num_experts=2 * model.spec.moe.num_experts, method="split"))[0]


def sliced(seed: int = 0) -> Decoder:
    layout = LayoutSpec(moe_layers=(0, 2), num_experts=8, top_k=4)
    dense = random_decoder(tiny_llama(), seed, STD)
    return upcycle(dense, UpcycleSpec(layout=layout, granularity=2, router_std=0.3))[0]


def without(model: Decoder, expert: int) -> Decoder:
    """The model as an import may bring it: one half of an expert is there, and the other is not."""
    assert model.spec.moe is not None
    kept = [e for e in range(model.spec.moe.num_experts) if e != expert]
    return with_experts(
        model, [kept] * len(model.spec.moe.moe_layers), spec_with(model.spec, num_experts=len(kept))
    )


@torch.no_grad()
def company_moves(model: Decoder) -> float:
    """How far the logits of texts hang on what is computed with them: alone, in a batch, token after token."""
    whole = model(IDS)
    alone = torch.cat([model(IDS[row : row + 1]) for row in range(len(IDS))])
    steps = torch.cat([model(IDS[:, : end + 1])[:, -1:] for end in range(IDS.shape[1])], dim=1)
    return max(float((other - whole).norm() / whole.norm()) for other in (alone, steps))


@torch.no_grad()
def moved(before: Decoder, after: Decoder) -> float:
    return float((after(IDS) - before(IDS)).norm() / before(IDS).norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_no_half_is_left_behind(family: str) -> None:
    model = split(model_of(family))
    assert model.spec.moe is not None
    half = model.spec.moe.num_experts // 2
    first_layer = model.spec.moe.moe_layers[0]
    told = rf"experts 1, {half + 1} of layer {first_layer} share one gate row.*set together to 2"
    with pytest.raises(SpecError, match=told):
        remove_expert(model, RemoveExpertSpec(expert=1))
    for first, second in ((1, half + 1), (half + 1, 1), (2, 1)):
        with pytest.raises(SpecError, match=told):
            merge_experts(model, MergeExpertsSpec(first=first, second=second))
    with pytest.raises(SpecError, match=told):
        preview_removal(model, RemoveExpertSpec(expert=1), some_prompts())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_share_a_row_go_together_and_the_rest_stays_bit_for_bit(family: str) -> None:
    model = split(model_of(family))
    assert model.spec.moe is not None
    half = model.spec.moe.num_experts // 2
    kept = [e for e in range(2 * half) if e not in (1, half + 1)]
    operation = RemoveExpertSpec(expert=1, together=2)
    smaller, report = remove_expert(model, operation)
    assert report["experts"] == [[1, half + 1]] * len(model.spec.moe.moe_layers)
    assert smaller.spec.moe == foreseen(model.spec, operation).moe
    for old, new in zip(model.moe_layers(), smaller.moe_layers(), strict=True):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor, per_expert(old)[name][kept])
    assert company_moves(smaller) < 4e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_what_growth_claims_holds_through_a_chain(family: str) -> None:
    """Split, remove, merge, double, grow, release, add: the function is kept where that is told, and batches move nothing."""
    model = split(model_of(family))
    model = remove_expert(model, RemoveExpertSpec(expert=1, together=2))[0]
    model = merge_experts(model, MergeExpertsSpec(first=0, second=1, together=2), some_prompts())[0]
    assert company_moves(model) < 4e-6
    for method in ("double_k", "twin"):
        assert model.spec.moe is not None
        grown, report = grow(model, GrowSpec(num_experts=2 * model.spec.moe.num_experts, method=method))
        assert report["keeps_function"] is True and moved(model, grown) < 4e-6
        assert company_moves(grown) < 4e-6
        model = grown
    model = release_twins(model, ReleaseTwinsSpec())[0]
    added, report = add_expert(model, AddExpertSpec(source=1))
    assert report["keeps_function"] is True and moved(model, added) < 4e-6
    # A twin of a half may go alone: its set stands for the half.
    assert moved(added, remove_expert(added, RemoveExpertSpec(expert=1))[0]) < 4e-6


def test_a_half_that_is_twins_goes_only_with_all_of_them() -> None:
    model = release_twins(grow(split(mixture()), GrowSpec(num_experts=16))[0], ReleaseTwinsSpec())[0]
    assert moved(model, remove_expert(model, RemoveExpertSpec(expert=1))[0]) < 4e-6
    with pytest.raises(SpecError, match="rounding alone would choose"):
        merge_experts(model, MergeExpertsSpec(first=0, second=1))
    with pytest.raises(SpecError, match="remove those first"):
        remove_expert(model, RemoveExpertSpec(expert=1, together=2))


@pytest.mark.parametrize("make", [lambda: split(model_of("mixtral")), sliced], ids=["split", "slices"])
def test_a_model_with_a_lone_half_is_told_to_move_when_it_grows(make: Any) -> None:
    lone = without(make(), 1)
    assert lone.spec.moe is not None
    # Where a row's products hang on how many rows there are; some processors' libraries have no such rows in so small a model.
    moves = company_moves(lone) > 1e-4
    for report in (
        grow(lone, GrowSpec(num_experts=14))[1],
        grow(lone, GrowSpec(num_experts=14, method="double_k"))[1],
        add_expert(lone, AddExpertSpec(source=0))[1],
    ):
        assert report["keeps_function"] is False
        assert report["undecided"]["layer"] == 0 and len(report["undecided"]["experts"]) == 2
        assert report["undecided"]["layers"] == len(lone.spec.moe.moe_layers)
    assert not moves or moved(lone, grow(lone, GrowSpec(num_experts=14))[0]) > 1e-3


def test_a_lone_half_may_go_and_then_growth_keeps_the_function() -> None:
    lone = without(split(model_of("mixtral")), 1)
    mended = remove_expert(lone, RemoveExpertSpec(expert=4))[0]
    assert company_moves(mended) < 4e-6
    grown, report = grow(mended, GrowSpec(num_experts=12))
    assert report["keeps_function"] is True and moved(mended, grown) < 4e-6


def test_slices_of_one_copy_go_together() -> None:
    model = sliced()
    with pytest.raises(SpecError, match=r"experts 2, 3 of layer 0 .*together to 2"):
        remove_expert(model, RemoveExpertSpec(expert=2))
    smaller, report = remove_expert(model, RemoveExpertSpec(expert=2, together=2))
    assert report["experts"] == [[2, 3]] * 2 and company_moves(smaller) < 4e-6
    grown, report = grow(smaller, GrowSpec(num_experts=12))
    assert report["keeps_function"] is True and moved(smaller, grown) < 4e-6


def test_quarters_go_by_four() -> None:
    model = split(split(mixture()))
    with pytest.raises(SpecError, match=r"experts 1, 5, 9, 13 of layer 0 .*together to 4"):
        remove_expert(model, RemoveExpertSpec(expert=9))
    for together in (2, 3):
        with pytest.raises(SpecError, match=r"in layer 0 the gate row of expert 9 is that of 4 in all"):
            remove_expert(model, RemoveExpertSpec(expert=9, together=together))
    assert company_moves(remove_expert(model, RemoveExpertSpec(expert=9, together=4))[0]) < 4e-6


def test_the_least_used_halves_are_found() -> None:
    model, prompts = split(mixture()), some_prompts()
    whole = remove_expert(mixture(), RemoveExpertSpec(), prompts)[1]["experts"]
    report = remove_expert(model, RemoveExpertSpec(together=2), prompts)[1]
    assert report["experts"] == [[expert, expert + 4] for expert in whole]
    with pytest.raises(SpecError, match="in layer 0 there are no 3 experts of one gate row"):
        remove_expert(model, RemoveExpertSpec(together=3), prompts)


@pytest.mark.parametrize("gone", [5, 8])
def test_no_more_go_at_once_than_leave_a_token_its_experts(gone: int) -> None:
    said = (
        f"^8 experts cannot lose {gone} at once: for top_k 4 at least 4 must stay, so that at most 4 may go$"
    )
    with pytest.raises(SpecError, match=said):
        remove_expert(split(mixture()), RemoveExpertSpec(expert=0, together=gone))


def test_where_not_one_may_go_it_is_said_that_way() -> None:
    with pytest.raises(SpecError, match="^2 experts cannot lose one when top_k is 2"):
        remove_expert(mixture(num_experts=2), RemoveExpertSpec(expert=0, together=2))
    gate = {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1, "group_score": "best"}
    model = mixture(num_experts=8, top_k=2, gate=gate)
    with pytest.raises(SpecError, match="^4 experts cannot lose 4 at once: for top_k 2 at least 2 must stay"):
        remove_expert(model, RemoveExpertSpec(expert=0, per_group=True, together=4))
    with pytest.raises(SpecError, match="^groups of 4 experts cannot lose one each: top_k"):
        remove_expert(
            mixture(num_experts=8, top_k=4, gate=gate), RemoveExpertSpec(expert=0, per_group=True, together=3)
        )


def test_halves_in_groups_go_from_every_group() -> None:
    gate = {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1, "group_score": "best"}
    model = split(mixture(num_experts=8, top_k=2, gate=gate))
    with pytest.raises(SpecError, match=r"experts 1, 5 of layer 0 .*together to 2"):
        remove_expert(model, RemoveExpertSpec(expert=1, per_group=True))
    smaller, report = remove_expert(model, RemoveExpertSpec(expert=1, per_group=True, together=2))
    assert report["experts"] == [[1, 5, 9, 13]] * 2 and company_moves(smaller) < 4e-6
    merged, report = merge_experts(
        model, MergeExpertsSpec(first=0, second=3, per_group=True, together=2), some_prompts()
    )
    assert report["second"] == [[3, 7, 11, 15]] * 2 and company_moves(merged) < 4e-6


def test_halves_merge_with_halves() -> None:
    model, prompts = split(mixture()), some_prompts()
    merged, report = merge_experts(model, MergeExpertsSpec(first=1, second=3, together=2), prompts)
    assert (report["first"], report["second"]) == ([[1, 5]] * 2, [[3, 7]] * 2)
    for layer, shares in zip(merged.moe_layers(), report["weights"], strict=True):
        assert shares[0] == shares[1]
        assert torch.equal(layer.router.weight[1], layer.router.weight[4])
    assert company_moves(merged) < 4e-6
    with pytest.raises(SpecError, match="expert 1 cannot be merged with itself"):
        merge_experts(model, MergeExpertsSpec(first=1, second=5, together=2))


@pytest.mark.parametrize("make", [lambda: split(mixture()), sliced], ids=["split", "slices"])
def test_half_of_an_expert_does_not_learn_a_gate_row_of_its_own(make: Any) -> None:
    told = r"experts \d, \d of layer 0 share one gate row.*rounding alone would choose"
    with pytest.raises(SpecError, match=told):
        wake_expert(make(), WakeExpertSpec(expert=1, steps=1), some_prompts())
    with pytest.raises(SpecError, match=told):
        specialise_clone(make(), SpecialiseCloneSpec(domain="law", steps=1), some_prompts())
    # Copies may: they answer alike, whichever is chosen.
    doubled = grow(mixture(), GrowSpec(num_experts=8, method="double_k"))[0]
    woken, _ = wake_expert(doubled, WakeExpertSpec(expert=1, steps=1, learning_rate=1e-9), some_prompts())
    assert moved(doubled, woken) < 1e-4


def test_copies_and_twins_are_not_halves() -> None:
    doubled = grow(mixture(), GrowSpec(num_experts=8, method="double_k"))[0]
    smaller = remove_expert(doubled, RemoveExpertSpec(expert=1))[0]
    assert company_moves(smaller) < 4e-6
    grown, report = grow(smaller, GrowSpec(num_experts=14))
    assert report["keeps_function"] is True and moved(smaller, grown) < 4e-6
    twins = grow(mixture(), GrowSpec(num_experts=8))[0]
    assert distance(twins, remove_expert(twins, RemoveExpertSpec(expert=1))[0]) < 4e-6


def test_copies_of_halves_are_halves() -> None:
    model = grow(split(mixture()), GrowSpec(num_experts=16, method="double_k"))[0]
    with pytest.raises(SpecError, match=r"experts 1, 5, 9, 13 of layer 0"):
        remove_expert(model, RemoveExpertSpec(expert=1))


def test_a_merge_of_equal_rows_keeps_the_row() -> None:
    """Two shares of one number may round to another number, which other experts of that row would not have."""
    twins = release_twins(grow(split(mixture()), GrowSpec(num_experts=16))[0], ReleaseTwinsSpec())[0]
    merged = merge_experts(twins, MergeExpertsSpec(first=1, second=9), some_prompts())[0]
    for layer in merged.moe_layers():
        assert torch.equal(layer.router.weight[1], layer.router.weight[5])
        assert undecided_in(layer) == []


def test_a_student_that_does_not_learn_is_not_left_with_halves_that_rounding_chooses_between() -> None:
    model, prompts = split(mixture(seed=0)), some_prompts()
    with pytest.raises(SpecError, match=r"experts \d, \d of layer \d of the student .*steps of 1 or more"):
        distil(model, DistilSpec(num_experts=7, steps=0), prompts)
    student = distil(model, DistilSpec(num_experts=7, steps=1), prompts)[0]
    assert not any(undecided_in(layer) for layer in student.moe_layers())
    assert company_moves(student) < 4e-6
    # Whole experts, or all places of a token: nothing is left to rounding.
    for num_experts in (4, 3):
        assert company_moves(distil(model, DistilSpec(num_experts=num_experts, steps=0), prompts)[0]) < 4e-6


def test_a_teacher_that_leaves_it_to_rounding_may_have_a_student_that_does() -> None:
    lone = without(split(mixture(seed=0)), 1)
    assert any(undecided_in(layer) for layer in lone.moe_layers())
    student = distil(lone, DistilSpec(num_experts=7, steps=0), some_prompts())[0]
    assert any(undecided_in(layer) for layer in student.moe_layers())


def test_who_shares_a_row_with_nobody_is_told_to_go_alone() -> None:
    told = "in layer 0 no other expert shares the gate row of expert 3; leave together at 1"
    with pytest.raises(SpecError, match=f"^{told}$"):
        remove_expert(mixture(), RemoveExpertSpec(expert=3, together=2))
    with pytest.raises(SpecError, match=f"^{told}$"):
        merge_experts(mixture(), MergeExpertsSpec(first=3, second=1, together=2))
