"""Removing and merging: what is lost is told before, the rest is as it was, alignment finds what was only shuffled."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations import grow, merge_experts, preview_removal, release_twins, remove_expert
from moe_core.operations.align import ExpertWeights, aligned, matching, mean_of
from moe_core.operations.parts import per_expert, tensors_of
from moe_core.operations.passes import listening, loads, loss_by_domain
from moe_core.routers import Routing
from moe_core.routers.assignment import assign
from moe_core.spec.operations import GrowSpec, MergeExpertsSpec, ReleaseTwinsSpec, RemoveExpertSpec
from tests.moe_core.operations.models import IDS, distance, gpt_oss, mixture, some_prompts


@pytest.mark.parametrize("renormalised", [True, False])
def test_what_is_left_is_the_gate_renormalised_over_the_others(renormalised: bool) -> None:
    model = mixture(norm_topk_prob=renormalised)
    smaller, _ = remove_expert(model, RemoveExpertSpec(expert=1))
    inputs: list[tuple[MoeMlp, torch.Tensor]] = []
    with torch.no_grad(), listening(smaller, lambda layer, x_TD: inputs.append((layer, x_TD))):
        smaller(IDS)
        for (layer, x_TD), old in zip(list(inputs), model.moe_layers(), strict=True):
            # By hand: the old layer's probabilities with expert 1 struck out.
            probs_TE = torch.softmax(x_TD @ old.router.weight.t(), -1)
            probs_TE[:, 1] = 0.0
            probs_TE /= probs_TE.sum(-1, keepdim=True)
            weight_TK, ids_TK = probs_TE.topk(2)
            if renormalised:
                weight_TK /= weight_TK.sum(-1, keepdim=True)
            by_hand = torch.stack(
                [
                    sum(
                        w * ExpertWeights.of(old, int(e)).outputs(x_D[None])[0]
                        for w, e in zip(ws, es, strict=True)
                    )
                    for x_D, ws, es in zip(x_TD, weight_TK, ids_TK, strict=True)
                ]
            )
            assert torch.allclose(layer(x_TD, None), by_hand, rtol=1e-4, atol=1e-5)


def test_the_loss_is_told_before_the_expert_is_gone_and_is_right() -> None:
    model, prompts = mixture(), some_prompts()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    spec = RemoveExpertSpec(expert=(3, 0))
    foretold = preview_removal(model, spec, prompts)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    smaller, report = remove_expert(model, spec, prompts)
    assert report["loss_after"] == foretold["loss_after"]
    assert loss_by_domain(smaller, prompts) == pytest.approx(foretold["loss_after"], abs=1e-5)
    assert loss_by_domain(model, prompts) == pytest.approx(foretold["loss_before"], abs=1e-6)
    assert foretold["loss_change"].keys() == {"law", "code"}
    json.dumps(report)


@pytest.mark.parametrize(
    "moe", [{"capacity": {"eval_factor": 0.6, "overflow": "drop"}}, {"gate": {"kind": "expert_choice"}}]
)
def test_what_is_told_is_the_loss_of_the_model_that_is_made(moe: dict[str, Any]) -> None:
    """An expert that is only hidden counts for how many tokens each of the others takes."""
    model, prompts = mixture(**moe), some_prompts(per_domain=8)
    spec = RemoveExpertSpec(expert=1)
    foretold = preview_removal(model, spec, prompts)
    smaller, report = remove_expert(model, spec, prompts)
    measured = loss_by_domain(smaller, prompts)
    assert foretold["loss_after"] == report["loss_after"] == pytest.approx(measured, abs=1e-6)
    # So is what a limit is held against.
    with pytest.raises(SpecError, match="would lose"):
        limit = max(measured[code] - foretold["loss_before"][code] for code in measured) - 1e-4
        remove_expert(model, spec.model_copy(update={"max_loss_increase": limit}), prompts)


def test_every_untouched_expert_stays_bit_for_bit() -> None:
    model = mixture()
    smaller, _ = remove_expert(model, RemoveExpertSpec(expert=(3, 0)))
    merged, _ = merge_experts(model, MergeExpertsSpec(first=2, second=(0, 1)), some_prompts())
    kept: dict[str, list[list[int | None]]] = {
        "removed": [[0, 1, 2], [1, 2, 3]],
        "merged": [[1, None, 3], [0, None, 3]],
    }
    for name, new_model in (("removed", smaller), ("merged", merged)):
        for old, new, keep in zip(model.moe_layers(), new_model.moe_layers(), kept[name], strict=True):
            for tensor_name, tensor in per_expert(new).items():
                for place, source in enumerate(keep):
                    same = source is not None and torch.equal(
                        tensor[place], per_expert(old)[tensor_name][source]
                    )
                    assert same == (source is not None)
    for name, tensor in tensors_of(smaller).items():
        if ".experts." not in name and ".router." not in name:
            assert torch.equal(tensor, tensors_of(model)[name])


def test_the_least_used_expert_is_found_in_each_layer() -> None:
    model, prompts = mixture(), some_prompts()
    report = remove_expert(model, RemoveExpertSpec(), prompts)[1]
    assert report["experts"] == loads(model, prompts).argmin(-1).tolist()
    with pytest.raises(SpecError, match="no expert is named"):
        remove_expert(model, RemoveExpertSpec())


def test_too_few_experts_and_wrong_names_are_refused() -> None:
    with pytest.raises(SpecError, match="2 experts cannot lose one when top_k is 2"):
        remove_expert(mixture(num_experts=2), RemoveExpertSpec(expert=0))
    with pytest.raises(SpecError, match="^the last expert must stay"):
        remove_expert(mixture(num_experts=1, top_k=1), RemoveExpertSpec(expert=0))
    with pytest.raises(SpecError, match="3 experts are named for 2 expert layers"):
        remove_expert(mixture(), RemoveExpertSpec(expert=(0, 1, 2)))
    with pytest.raises(SpecError, match="cannot be merged with itself"):
        merge_experts(mixture(), MergeExpertsSpec(first=1, second=1))


def test_removing_a_twin_leaves_the_function_where_twins_are_still_equal() -> None:
    twins, _ = grow(mixture(), GrowSpec(num_experts=8))
    for expert in (1, 5):
        smaller, _ = remove_expert(twins, RemoveExpertSpec(expert=expert))
        assert smaller.spec.moe is not None
        assert smaller.spec.moe.num_experts == 7
        assert distance(twins, smaller) < 4e-6
    with pytest.raises(SpecError, match="name one expert for all layers"):
        remove_expert(twins, RemoveExpertSpec(expert=(1, 2)))
    crowd, _ = grow(twins, GrowSpec(num_experts=16))
    with pytest.raises(SpecError, match=r"twins of expert 1.*operation release_twins"):
        remove_expert(crowd, RemoveExpertSpec(expert=1))
    with pytest.raises(SpecError, match=r"twins of expert 4.*operation release_twins") as refused:
        merge_experts(crowd, MergeExpertsSpec(first=0, second=4))
    assert "name one expert" not in str(refused.value)
    assert (
        distance(
            twins, remove_expert(release_twins(crowd, ReleaseTwinsSpec())[0], RemoveExpertSpec(expert=1))[0]
        )
        < 4e-6
    )


def test_of_twins_the_one_that_all_layers_use_least_goes_from_all_of_them_if_it_may() -> None:
    """Three twins share the tokens of one, so that one of them is used least; dealt by a hash none of them may go."""
    prompts = some_prompts(per_domain=16)
    for hold, may in ((0.0, range(6)), (None, (3, 4, 5))):
        model = mixture(num_experts=6, twins={"roots": (0, 0, 0, 3, 4, 5), "hold": hold})
        used_E = loads(model, prompts).sum(0).tolist()
        report = remove_expert(model, RemoveExpertSpec(), prompts)[1]
        assert report["experts"] == [min((used_E[e], e) for e in may)[1]] * 2
        assert min((used_E[e], e) for e in range(6))[1] in (0, 1, 2)


def shuffled_twin(model: Decoder, source: int, target: int) -> None:
    """Make `target` compute what `source` computes, with its neurons in another order."""
    with torch.no_grad():
        for layer in model.moe_layers():
            order = torch.randperm(32, generator=torch.Generator().manual_seed(layer.layer))
            ExpertWeights.of(layer, source).ordered(order).put(layer, target)
            layer.router.weight[target] = layer.router.weight[source]


@pytest.mark.parametrize("with_prompts", [True, False])
def test_merging_experts_that_differ_in_the_order_of_neurons_loses_nothing(with_prompts: bool) -> None:
    model = mixture()
    shuffled_twin(model, 1, 3)
    merged, _ = merge_experts(
        model, MergeExpertsSpec(first=1, second=3), some_prompts() if with_prompts else None
    )
    for old, new in zip(model.moe_layers(), merged.moe_layers(), strict=True):
        one, both = ExpertWeights.of(old, 1), ExpertWeights.of(new, 1)
        assert torch.allclose(one.gate_up_2FD, both.gate_up_2FD, atol=1e-6)
        assert torch.allclose(one.down_DF, both.down_DF, atol=1e-6)
        assert torch.allclose(new.router.weight[1], old.router.weight[1], atol=1e-6)


def test_without_alignment_it_would_lose() -> None:
    model = mixture()
    shuffled_twin(model, 1, 3)
    layer = next(iter(model.moe_layers()))
    one, other = ExpertWeights.of(layer, 1), ExpertWeights.of(layer, 3)
    x_ND = torch.randn(20, 48, generator=torch.Generator().manual_seed(2))
    exact = one.outputs(x_ND)

    def lost(expert: ExpertWeights) -> float:
        return float((mean_of([one, expert], [1.0, 1.0]).outputs(x_ND) - exact).norm() / exact.norm())

    assert lost(aligned(one, other)) < 1e-6
    assert lost(other) > 0.5


def test_weights_of_experts_are_made_to_sum_to_one_and_are_even_where_nothing_is_used() -> None:
    layer = next(iter(mixture().moe_layers()))
    one, other = ExpertWeights.of(layer, 1), ExpertWeights.of(layer, 3)
    for weights, share in (([3.0, 1.0], 0.75), ([0.0, 2.0], 0.0), ([0.0, 0.0], 0.5)):
        mean = mean_of([one, other], weights)
        assert torch.allclose(mean.down_DF, share * one.down_DF + (1.0 - share) * other.down_DF, atol=1e-6)
        assert torch.allclose(
            mean.gate_up_2FD, share * one.gate_up_2FD + (1.0 - share) * other.gate_up_2FD, atol=1e-6
        )


def test_weights_of_a_merge_follow_usage() -> None:
    model, prompts = mixture(), some_prompts()
    load_LE = loads(model, prompts).double()
    _, report = merge_experts(model, MergeExpertsSpec(first=0, second=2), prompts)
    for row, (one, other) in enumerate(report["weights"]):
        assert one == pytest.approx(float(load_LE[row, 0] / (load_LE[row, 0] + load_LE[row, 2])))
        assert one + other == pytest.approx(1.0)
    even = merge_experts(model, MergeExpertsSpec(first=0, second=2, weights="even"), prompts)[1]
    assert even["weights"] == [(0.5, 0.5)] * 2
    blind = merge_experts(model, MergeExpertsSpec(first=0, second=2))[1]
    assert [one["weighed_by"] for one in (report, even, blind)] == ["usage", "even", "even"]


costs = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(st.one_of(st.integers(-5, 5), st.floats(-9, 9)), min_size=n, max_size=n),
        min_size=n,
        max_size=n,
    )
)


@settings(max_examples=80, deadline=None)
@given(costs)
def test_no_permutation_is_cheaper_than_the_assignment(rows: list[list[float]]) -> None:
    cost = np.array(rows, dtype=np.float64)
    columns = assign(cost)
    size = len(rows)
    assert sorted(columns.tolist()) == list(range(size))
    cheapest = min(cost[range(size), list(order)].sum() for order in itertools.permutations(range(size)))
    assert cost[range(size), columns].sum() == pytest.approx(cheapest, abs=1e-9)


def test_a_planted_permutation_of_many_neurons_is_found() -> None:
    generator = torch.Generator().manual_seed(4)
    expert = ExpertWeights(
        torch.randn(400, 24, generator=generator), torch.randn(24, 200, generator=generator)
    )
    order = torch.randperm(200, generator=generator)
    noisy = expert.ordered(order)
    noisy = ExpertWeights(noisy.gate_up_2FD + 0.1, noisy.down_DF)
    found = matching(expert, noisy)
    assert torch.equal(order[found], torch.arange(200))


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.array([[np.nan]]), np.array([[np.inf]])])
def test_costs_that_cannot_be_assigned_are_refused(bad: Any) -> None:
    with pytest.raises(SpecError, match="an assignment needs"):
        assign(bad)


def test_an_assignment_of_nothing_is_nothing() -> None:
    assert assign(np.zeros((0, 0))).tolist() == []


@pytest.mark.parametrize(
    "gate", [{"kind": "hash"}, {"kind": "sigmoid_groups", "num_groups": 2}, {"kind": "soft"}]
)
def test_a_gate_that_ties_experts_together_is_refused(gate: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="ties experts to one another"):
        remove_expert(mixture(gate=gate), RemoveExpertSpec(expert=0))


def test_the_rows_of_a_sigmoid_gate_and_its_bias_go_with_their_expert() -> None:
    model = mixture(gate={"kind": "sigmoid_groups"})
    smaller, _ = remove_expert(model, RemoveExpertSpec(expert=1))
    for old, new in zip(model.moe_layers(), smaller.moe_layers(), strict=True):
        assert {name for name in per_expert(new) if name.startswith("router.")} == {
            "router.weight",
            "router.selection_bias",
        }
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor, per_expert(old)[name][[0, 2, 3]])


def test_a_shuffled_copy_with_biases_merges_without_loss() -> None:
    """Biases of neurons go with their neurons, and the mean of two equal biases is that bias."""
    model, prompts = gpt_oss(), some_prompts(per_domain=8)
    with torch.no_grad():
        for layer in model.moe_layers():
            num_neurons = layer.experts.down_EDF.shape[-1]
            order = torch.randperm(num_neurons, generator=torch.Generator().manual_seed(2))
            ExpertWeights.of(layer, 0).ordered(order).put(layer, 1)
            assert not torch.equal(layer.experts.gate_up_bias_E2F[0], layer.experts.gate_up_bias_E2F[1])
    merged, _ = merge_experts(model, MergeExpertsSpec(first=0, second=1), prompts)
    for old, new in zip(model.moe_layers(), merged.moe_layers(), strict=True):
        assert {"experts.gate_up_bias_E2F", "experts.down_bias_ED", "router.bias"} < per_expert(new).keys()
        x_ND = torch.randn(32, model.spec.hidden_size, generator=torch.Generator().manual_seed(1))
        theirs = ExpertWeights.of(old, 0).outputs(x_ND)
        assert torch.allclose(ExpertWeights.of(new, 0).outputs(x_ND), theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(new.router.weight[1:], old.router.weight[2:])


@torch.no_grad()
def test_what_an_expert_with_biases_answers_is_what_the_layer_answers() -> None:
    layer = next(iter(gpt_oss().moe_layers()))
    x_ND = torch.randn(24, layer.experts.down_EDF.shape[1], generator=torch.Generator().manual_seed(1))
    ids_N1, even_NE = torch.full((24, 1), 2), torch.zeros(24, layer.moe.num_experts)
    routing = Routing(ids_N1, torch.ones(24, 1), even_NE, even_NE)
    assert torch.allclose(
        layer.experts(x_ND, routing), ExpertWeights.of(layer, 2).outputs(x_ND), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("activation", ["gelu", "clamped"])
def test_neurons_are_known_by_what_they_do_whatever_their_activation(activation: str) -> None:
    from moe_core.model.init import random_decoder
    from tests.moe_core.operations.models import mixture_spec
    from tests.moe_core.tiny import STD

    spec = mixture_spec().model_copy(update={"activation": activation})
    model = random_decoder(spec, 5, STD)
    inputs: list[torch.Tensor] = []
    with torch.no_grad(), listening(model, lambda layer, x_TD: inputs.append(x_TD)):
        model(IDS)
        layer = next(iter(model.moe_layers()))
        one = ExpertWeights.of(layer, 2).outputs(inputs[0])
        ids_T1 = torch.full((24, 1), 2)
        probs_TE = torch.zeros(24, 4)
        assert torch.allclose(
            layer.experts(inputs[0], Routing(ids_T1, torch.ones(24, 1), probs_TE, probs_TE)), one, atol=1e-5
        )
