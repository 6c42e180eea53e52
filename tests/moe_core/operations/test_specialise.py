"""A clone learns its domain; nothing but the clone changes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from moe_core.errors import NonFiniteLoss, SpecError
from moe_core.model.layers import MoeMlp
from moe_core.operations import add_expert, grow, release_twins, specialise_clone
from moe_core.operations.learning import learn_rows
from moe_core.operations.parts import per_expert, tensors_of
from moe_core.operations.passes import listening
from moe_core.operations.prompts import Prompts
from moe_core.operations.specialise import _loss
from moe_core.spec.operations import AddExpertSpec, GrowSpec, ReleaseTwinsSpec, SpecialiseCloneSpec
from tests.moe_core.operations.models import distance, gpt_oss, mixture, some_prompts

SPEC = SpecialiseCloneSpec(source=1, domain="law", steps=30, learning_rate=2e-2)


def test_the_domain_gains_by_the_clone_and_every_other_expert_is_bit_identical() -> None:
    model, prompts = mixture(num_experts=3, top_k=2), some_prompts(per_domain=8)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    clone, report = specialise_clone(model, SPEC, prompts)
    assert report["loss_change"]["law"] < -0.3
    assert report["loss_change"]["law"] < report["loss_change"]["code"] - 0.2
    assert report["clone_share"]["law"] > 2 * report["clone_share"]["code"]
    for old, new in zip(model.moe_layers(), clone.moe_layers(), strict=True):
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor[:3], per_expert(old)[name]), name
            assert not torch.equal(tensor[3], per_expert(old)[name][1]), name
    for name, tensor in tensors_of(clone).items():
        if ".experts." not in name and ".router." not in name:
            assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    json.dumps(report)


def test_a_clone_that_learns_nothing_changes_nothing() -> None:
    model, prompts = mixture(), some_prompts()
    clone, report = specialise_clone(model, SPEC.model_copy(update={"steps": 0}), prompts)
    assert distance(model, clone) < 4e-6
    assert report["loss_change"] == {"law": pytest.approx(0, abs=1e-5), "code": pytest.approx(0, abs=1e-5)}


def test_the_weight_of_the_gates_loss_counts() -> None:
    """It is what sends the domain to the clone: without it the clone gets the same share of every domain, about."""
    model, prompts = mixture(num_experts=3, top_k=2), some_prompts(per_domain=8)
    lead = {}
    for weight in (0.0, 1.0):
        spec = SPEC.model_copy(update={"gate_weight": weight})
        share = specialise_clone(model, spec, prompts)[1]["clone_share"]
        lead[weight] = share["law"] - share["code"]
    assert lead[1.0] > lead[0.0] + 0.1


def test_the_loss_grows_with_the_weight_by_the_logistic_loss_of_the_two_rows() -> None:
    born, _ = add_expert(mixture(num_experts=3, top_k=2), AddExpertSpec(source=1))
    model, prompts = release_twins(born, ReleaseTwinsSpec())[0], some_prompts()
    mine, others = prompts.take(prompts.of_domain("law")), prompts.take(prompts.of_domain("code"))
    at = {
        weight: float(_loss(model, 3, SPEC.model_copy(update={"gate_weight": weight}), mine, others).detach())
        for weight in (0.0, 1.0, 2.5)
    }
    # Clone and source have the same row: every token is undecided, on both sides and in every layer.
    assert at[1.0] - at[0.0] == pytest.approx(math.log(2.0), rel=1e-4)
    assert at[2.5] - at[0.0] == pytest.approx(2.5 * math.log(2.0), rel=1e-4)


def test_each_side_of_the_gates_loss_is_the_logistic_loss_of_the_clones_lead() -> None:
    """By hand on the routers' true inputs, once the two rows are no longer the same."""
    born, _ = add_expert(mixture(num_experts=3, top_k=2), AddExpertSpec(source=1))
    model, prompts = release_twins(born, ReleaseTwinsSpec())[0], some_prompts()
    with torch.no_grad():
        for layer in model.moe_layers():
            layer.router.weight[3] *= 1.5
    sides: list[torch.Tensor] = []
    for code, side in (("law", 1.0), ("code", -1.0)):
        batch = prompts.take(prompts.of_domain(code))

        def note(layer: MoeMlp, x_TD: torch.Tensor, batch: Prompts = batch, side: float = side) -> None:
            lead_T = x_TD[batch.real_T] @ (layer.router.weight[3] - layer.router.weight[1])
            sides.append(torch.log1p(torch.exp(-side * lead_T)).mean())

        with torch.no_grad(), listening(model, note):
            model(batch.ids_NS)
    mine, others = prompts.take(prompts.of_domain("law")), prompts.take(prompts.of_domain("code"))
    at = [
        float(_loss(model, 3, SPEC.model_copy(update={"gate_weight": weight}), mine, others).detach())
        for weight in (0.0, 1.0)
    ]
    assert at[1] - at[0] == pytest.approx(float(torch.stack(sides).mean()), rel=1e-4)


def test_equal_seeds_give_equal_clones() -> None:
    spec = SPEC.model_copy(update={"steps": 3})
    one, same = (specialise_clone(mixture(), spec, some_prompts())[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


def test_the_biases_of_a_clone_learn_with_its_maps() -> None:
    model, prompts = gpt_oss(), some_prompts()
    clone, _ = specialise_clone(model, SPEC.model_copy(update={"steps": 2}), prompts)
    for old, new in zip(model.moe_layers(), clone.moe_layers(), strict=True):
        assert {"experts.gate_up_bias_E2F", "experts.down_bias_ED", "router.bias"} < per_expert(new).keys()
        for name, tensor in per_expert(new).items():
            assert torch.equal(tensor[:4], per_expert(old)[name]), name
            assert not torch.equal(tensor[4], per_expert(old)[name][1]), name


def test_a_loss_that_is_no_number_ends_it_and_writes_nothing() -> None:
    model, prompts = mixture(), some_prompts()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}

    def worse_at_the_second(batch: Prompts, _other: Prompts | None) -> torch.Tensor:
        calls.append(batch)
        return model(batch.ids_NS).float().mean() * (math.nan if len(calls) == 2 else 1.0)

    calls: list[Prompts] = []
    spec = SPEC.model_copy(update={"learning_rate": 1e-2})
    with pytest.raises(NonFiniteLoss, match=r"the loss became nan at step 1; lower learning_rate \(0.01\)"):
        learn_rows(model, [1, 1], worse_at_the_second, (prompts, prompts.take([])), spec)
    assert all(tensor.isfinite().all() for tensor in tensors_of(model).values())
    assert any(not torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SpecError, match="domain 'art' has no prompts"):
        specialise_clone(mixture(), SPEC.model_copy(update={"domain": "art"}), some_prompts())
    twins, _ = grow(mixture(), GrowSpec(num_experts=8))
    with pytest.raises(SpecError, match="release them to the gate first"):
        specialise_clone(twins, SPEC, some_prompts())
