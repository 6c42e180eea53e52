"""Gates that score each expert by itself, with groups or without: growth keeps the function, edits keep groups equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moe_core
from moe_core import operations
from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations.parts import per_expert, spec_with, tensors_of, with_experts
from moe_core.operations.passes import loads, loss_by_domain
from moe_core.spec import operations as asked
from tests.moe_core.operations.models import IDS, distance, mixture, some_prompts
from tests.moe_core.tiny import STD, tiny_family

SCALE = 2.5
GATES: dict[str, dict[str, Any]] = {
    "one group": {"routed_scaling_factor": SCALE},
    "DeepSeek-V3": {"num_groups": 2, "topk_group": 1, "routed_scaling_factor": SCALE},
    "DeepSeek-V2": {
        "num_groups": 2, "topk_group": 1, "scores": "softmax", "group_score": "best", "selection_bias": False,
    },
    "square roots": {"num_groups": 2, "topk_group": 2, "scores": "sqrtsoftplus"},
}  # fmt: skip


def grouped(gate: str = "DeepSeek-V3", bias: float = 0.5, **moe: Any) -> Decoder:
    """A mixture whose correction biases are large and mostly negative, so that they count in every choice."""
    model = mixture(**{"num_experts": 8, "gate": {"kind": "sigmoid_groups", **GATES[gate]}, **moe})
    generator = torch.Generator().manual_seed(11)
    for layer in model.moe_layers():
        for name, tensor in layer.router.tensors.items():
            if name == "selection_bias":
                tensor.data = bias * torch.randn(tensor.shape, generator=generator) - 3.0 * bias
    return model


def grown(model: Decoder, num_experts: int, method: str = "twin") -> Decoder:
    return operations.grow(model, asked.GrowSpec.parse({"num_experts": num_experts, "method": method}))[0]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_twins_keep_the_function_and_the_gate_as_it_is(gate: str, norm: bool) -> None:
    model = grouped(gate, norm_topk_prob=norm)
    more = grown(model, 32)
    assert model.spec.moe is not None
    assert more.spec.moe is not None
    assert distance(model, more) < 4e-6
    assert more.spec.moe.gate == model.spec.moe.gate
    assert (more.spec.moe.top_k, more.spec.moe.norm_topk_prob) == (2, norm)


@pytest.mark.parametrize("gate", ["one group", "DeepSeek-V3"])
def test_it_is_kept_at_every_step_from_two_to_sixty_four(gate: str) -> None:
    first = model = grouped(gate, num_experts=2, top_k=1)
    for num_experts in (4, 8, 16, 32, 64):
        model = grown(model, num_experts)
        assert distance(first, model) < 4e-6


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("method", ["double_k", "split"])
@pytest.mark.parametrize("gate", ["one group", "DeepSeek-V2", "square roots"])
def test_both_of_two_copies_keep_it_too_where_groups_are_not_chosen_by_two(
    gate: str, method: str, norm: bool
) -> None:
    model = grouped(gate, norm_topk_prob=norm)
    assert distance(model, grown(model, 32, method)) < 4e-6


@pytest.mark.parametrize("method", ["double_k", "split"])
def test_copies_that_would_choose_other_groups_are_refused_and_would(method: str) -> None:
    model = grouped()
    with pytest.raises(
        SpecError, match="the two best of a group be one expert and its copy.*grow with 'twin'"
    ):
        grown(model, 16, method)
    order = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    both = with_experts(model, [order] * 2, spec_with(model.spec, num_experts=16, top_k=4))
    assert distance(model, both) > 0.05


def test_copies_stand_in_the_group_of_their_source_and_all_rows_stay_bit_for_bit() -> None:
    model = grouped()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    source = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    more = grown(model, 16)
    for old, new in zip(model.moe_layers(), more.moe_layers(), strict=True):
        assert {"router.weight", "router.selection_bias"} < per_expert(new).keys()
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor, per_expert(old)[name][source]), name
    for name, tensor in tensors_of(more).items():
        if ".experts." not in name and ".router." not in name:
            assert torch.equal(tensor, before[name])
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())


def test_copies_outside_the_group_of_their_source_do_not_keep_it() -> None:
    model = grouped()
    order = [*range(8), *range(8)]
    twins = {"roots": tuple(order)}
    apart = with_experts(model, [order] * 2, spec_with(model.spec, num_experts=16, twins=twins))
    assert distance(model, apart) > 0.05


def test_twins_share_the_tokens_that_their_one_expert_had() -> None:
    model, prompts = grouped(), some_prompts(per_domain=40)
    before, after = loads(model, prompts), loads(grown(model, 16), prompts)
    assert torch.equal(after.view(2, 2, 2, 4).sum(2).flatten(1), before)


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v2", "step3p5"])
def test_families_with_such_gates_grow_and_survive_the_disk(family: str, tmp_path: Path) -> None:
    model = random_decoder(tiny_family(family), 3, STD)
    assert model.spec.moe is not None
    more = grown(model, 4 * model.spec.moe.num_experts)
    assert distance(model, more) < 4e-6
    back = moe_core.load(moe_core.save(more, tmp_path / "m"))
    assert back.spec == more.spec
    with torch.no_grad():
        assert torch.equal(back(IDS), more(IDS))


def test_one_expert_comes_to_a_gate_of_one_group_and_the_others_stay() -> None:
    model = grouped("one group")
    added, report = operations.add_expert(model, asked.AddExpertSpec(source=2))
    assert (report["expert"], report["source"]) == (8, 2)
    assert distance(model, added) < 4e-6
    for old, new in zip(model.moe_layers(), added.moe_layers(), strict=True):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor, per_expert(old)[name][[*range(8), 2]])


def test_one_expert_comes_to_each_group() -> None:
    model = grouped()
    with pytest.raises(
        SpecError, match="in 2 groups of one size, so that none comes or goes alone; set per_group"
    ):
        operations.add_expert(model, asked.AddExpertSpec(source=2))
    added, report = operations.add_expert(model, asked.AddExpertSpec(source=2, per_group=True))
    assert (report["expert"], report["source"]) == ([4, 9], [2, 6])
    assert distance(model, added) < 4e-6
    for old, new in zip(model.moe_layers(), added.moe_layers(), strict=True):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor, per_expert(old)[name][[0, 1, 2, 3, 2, 4, 5, 6, 7, 6]])
    again, _ = operations.add_expert(added, asked.AddExpertSpec(source=1, per_group=True))
    assert distance(model, again) < 4e-6
    assert distance(model, operations.release_twins(again, asked.ReleaseTwinsSpec())[0]) < 4e-6
    with pytest.raises(SpecError, match="expert 4 is outside the 4 experts of a group"):
        operations.add_expert(model, asked.AddExpertSpec(source=4, per_group=True))


def test_one_expert_goes_from_each_group_and_the_loss_is_told_before() -> None:
    model, prompts = grouped(), some_prompts()
    with pytest.raises(SpecError, match="set per_group"):
        operations.remove_expert(model, asked.RemoveExpertSpec(expert=1))
    spec = asked.RemoveExpertSpec(expert=(1, 3), per_group=True)
    foretold = operations.preview_removal(model, spec, prompts)
    smaller, report = operations.remove_expert(model, spec, prompts)
    assert report["experts"] == foretold["experts"] == [[1, 5], [3, 7]]
    assert loss_by_domain(smaller, prompts) == pytest.approx(foretold["loss_after"], abs=1e-5)
    for keep, old, new in zip(
        ([0, 2, 3, 4, 6, 7], [0, 1, 2, 4, 5, 6]), model.moe_layers(), smaller.moe_layers(), strict=True
    ):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor, per_expert(old)[name][keep])


def test_the_least_used_of_each_group_is_found() -> None:
    model, prompts = grouped(), some_prompts()
    report = operations.remove_expert(model, asked.RemoveExpertSpec(per_group=True), prompts)[1]
    load_LGM = loads(model, prompts).view(2, 2, 4)
    assert report["experts"] == (load_LGM.argmin(-1) + torch.tensor([0, 4])).tolist()


def test_what_was_added_to_each_group_goes_again_without_loss() -> None:
    model = grouped()
    added, _ = operations.add_expert(model, asked.AddExpertSpec(source=2, per_group=True))
    back, _ = operations.remove_expert(added, asked.RemoveExpertSpec(expert=4, per_group=True))
    assert distance(model, back) < 4e-6
    for one, other in zip(model.moe_layers(), back.moe_layers(), strict=True):
        assert all(torch.equal(tensor, per_expert(one)[name]) for name, tensor in per_expert(other).items())


def test_two_experts_of_each_group_become_one() -> None:
    model, prompts = grouped(), some_prompts()
    with pytest.raises(SpecError, match="set per_group"):
        operations.merge_experts(model, asked.MergeExpertsSpec(first=0, second=1))
    merged, report = operations.merge_experts(
        model, asked.MergeExpertsSpec(first=3, second=1, per_group=True), prompts
    )
    assert (report["first"], report["second"]) == ([[3, 7]] * 2, [[1, 5]] * 2)
    for row, (old, new) in enumerate(zip(model.moe_layers(), merged.moe_layers(), strict=True)):
        before, after = per_expert(old), per_expert(new)
        for name in before:
            assert torch.equal(after[name][[0, 1, 3, 4]], before[name][[0, 2, 4, 6]])
        for place, (one, other), (share, rest) in zip(
            (2, 5), ((3, 1), (7, 5)), report["weights"][row], strict=True
        ):
            bias = before["router.selection_bias"]
            assert float(after["router.selection_bias"][place]) == pytest.approx(
                share * float(bias[one]) + rest * float(bias[other]), rel=1e-5
            )


def test_groups_that_would_be_too_small_are_refused() -> None:
    with pytest.raises(SpecError, match="groups of 2 experts cannot lose one each: top_k"):
        operations.remove_expert(grouped(num_experts=4), asked.RemoveExpertSpec(expert=0, per_group=True))
    with pytest.raises(SpecError, match="no group may be empty"):
        operations.remove_expert(
            grouped(num_experts=2, top_k=1), asked.RemoveExpertSpec(expert=0, per_group=True)
        )


def test_a_clone_learns_a_domain_under_a_sigmoid_gate_of_one_group() -> None:
    model, prompts = grouped("one group"), some_prompts()
    spec = asked.SpecialiseCloneSpec(domain="law", source=1, steps=8)
    clone, report = operations.specialise_clone(model, spec, prompts)
    assert report["expert"] == 8
    for old, new in zip(model.moe_layers(), clone.moe_layers(), strict=True):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor[:8], per_expert(old)[name])
        gate_E, rows_ED = new.router.tensors["selection_bias"], new.router.weight
        assert gate_E[8] == gate_E[1]
        assert not torch.equal(rows_ED[8], rows_ED[1])
    assert report["clone_share"]["law"] > report["clone_share"]["code"]
    with pytest.raises(SpecError, match="2 groups of one size.*use a model whose gate has one group"):
        operations.specialise_clone(grouped(), spec, prompts)
