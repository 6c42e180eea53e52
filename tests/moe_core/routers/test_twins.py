"""Between twins that are released to it the gate chooses by the score it chooses experts by, with every lever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.context import DomainPrior, RoutingContext
from moe_core.operations import grow, release_twins, remove_expert
from moe_core.routers import NO_EXPERT, GateCall, Routing, decide
from moe_core.spec import RoutingSpec
from moe_core.spec.gate import Hierarchical, Soft
from moe_core.spec.operations import GrowSpec, ReleaseTwinsSpec, RemoveExpertSpec
from tests.moe_core.operations.models import IDS, mixture
from tests.moe_core.routers.gate_cases import moe_of, tensors_of

SOFTMAX: dict[str, Any] = {"kind": "softmax_topk", "logit_bias": True, "selection_bias": True}
SIGMOID: dict[str, Any] = {"kind": "sigmoid_groups", "logit_bias": True}
BY_SOFTMAX: dict[str, Any] = {**SIGMOID, "scores": "softmax"}
GATES = pytest.mark.parametrize("gate", [SOFTMAX, SIGMOID, BY_SOFTMAX], ids=["softmax", "sigmoid", "v2"])
LAWS = torch.zeros(IDS.numel(), dtype=torch.long)


def released(gate: dict[str, Any], **moe: Any) -> Decoder:
    """Eight experts, 4 to 7 the equal twins of 0 to 3, the gate choosing between them."""
    twins = grow(mixture(gate=gate, **moe), GrowSpec(num_experts=8))[0]
    return release_twins(twins, ReleaseTwinsSpec())[0]


@torch.no_grad()
def chosen(model: Decoder, **context: Any) -> Tensor:
    """(L · T, K): the choices of every layer."""
    ids: list[Tensor] = []

    def observe(_: int, routing: Routing) -> None:
        ids.append(routing.expert_ids_TK)

    model(IDS, RoutingContext(observe=observe, **context))
    return torch.cat(ids)


def prior(expert: int, strength: float) -> DomainPrior:
    bias_1LE = torch.zeros(1, 2, 8)
    bias_1LE[..., expert] = strength
    return DomainPrior(bias_1LE, 2)


@GATES
def test_a_logit_bias_decides_between_twins(gate: dict[str, Any]) -> None:
    model = released(gate)
    assert int(chosen(model).max()) >= 4
    for layer in model.moe_layers():
        with torch.no_grad():
            layer.router.tensors["bias"][4:] += 0.01
    assert int(chosen(model).min()) >= 4


@GATES
@pytest.mark.parametrize("step", [1e-3, 5.0])
def test_a_stored_selection_bias_decides_between_twins(gate: dict[str, Any], step: float) -> None:
    model = released(gate)
    for layer in model.moe_layers():
        with torch.no_grad():
            layer.router.tensors["selection_bias"][4:] += step
    assert int(chosen(model).min()) >= 4


@GATES
def test_a_selection_bias_of_the_call_decides_between_twins(gate: dict[str, Any]) -> None:
    model, bias_LE = released(gate), torch.zeros(2, 8)
    before = chosen(model)
    bias_LE[:, :4] = 1e-3
    after = chosen(model, selection_bias_LE=bias_LE)
    assert int(after.max()) < 4
    # What every copy has in common leaves the choice between roots as it was.
    assert torch.equal((before % 4).sort(-1).values, after.sort(-1).values)


@GATES
def test_a_finite_prior_reaches_every_token_as_before_growth(gate: dict[str, Any]) -> None:
    ids_TK = chosen(released(gate), domain_T=LAWS, prior=prior(6, 50.0))
    assert bool((ids_TK == 6).any(-1).all())


@GATES
def test_a_floor_decides_between_twins(gate: dict[str, Any]) -> None:
    mine_NE = torch.zeros(1, 8)
    mine_NE[0, 6] = 1.0
    floor = DomainPrior(torch.zeros(1, 2, 8), 2, floor_NL=torch.full((1, 2), 0.9), mine_NE=mine_NE)
    ids_TK = chosen(released(gate), domain_T=LAWS, prior=floor)
    assert not bool((ids_TK == 2).any())


@GATES
def test_noise_decides_between_twins(gate: dict[str, Any]) -> None:
    def noisy(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return chosen(model, training=True, noise=1e-4, rng=rng)

    model = released(gate)
    # Too little to change experts, enough to change twins that are equal.
    one, other = noisy(0).sort(-1).values, noisy(1).sort(-1).values
    assert torch.equal((one % 4).sort(-1).values, (other % 4).sort(-1).values)
    assert 0.3 < float((one != other).double().mean()) < 0.9


@GATES
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_at_any_temperature_the_levers_hold(gate: dict[str, Any], temperature: float) -> None:
    model = released(gate, top_k=1)
    assert model.spec.moe is not None
    call = GateCall(torch.randn(60, 48), 1, temperature=temperature, selection_bias_E=torch.zeros(8))
    tensors = next(iter(model.moe_layers())).router.tensors
    found = decide(model.spec.moe, tensors, call)
    assert 0 < int((found.expert_ids_TK < 4).sum()) < 60
    call = replace(call, selection_bias_E=torch.tensor([0.0] * 4 + [1e-3] * 4))
    lifted = decide(model.spec.moe, tensors, call)
    assert torch.equal(lifted.expert_ids_TK, found.expert_ids_TK % 4 + 4)


def test_a_mask_that_leaves_twins_only_is_refused() -> None:
    model = released(SOFTMAX)
    assert model.spec.moe is not None
    routing = RoutingSpec.parse(
        {
            "domains": [{"code": "law", "name_en": "Law", "name_zh": "法", "experts": [2, 6]}],
            "prior_mode": "mask",
        }
    )
    fit: dict[str, Any] = {"num_moe_layers": 2, "num_experts": 8, "top_k": 2}
    DomainPrior.from_routing(routing, **fit)
    with pytest.raises(SpecError, match="2 experts in a layer, of which a token sees 1"):
        DomainPrior.from_routing(routing, **fit, twins=model.spec.moe.twins)


@GATES
def test_no_masked_expert_is_chosen_where_only_twins_are_left(gate: dict[str, Any]) -> None:
    mask_1LE = torch.full((1, 2, 8), float("-inf"))
    mask_1LE[..., [2, 6]] = 0.0
    model = released(gate)
    ids_TK = chosen(model, domain_T=LAWS, prior=DomainPrior(mask_1LE, 2))
    assert set(ids_TK[:, 0].tolist()) == {2, 6}
    assert set(ids_TK[:, 1].tolist()) == {NO_EXPERT}
    with torch.no_grad():
        out = model(IDS, RoutingContext(domain_T=LAWS, prior=DomainPrior(mask_1LE, 2)))
    assert out.isfinite().all()


def test_a_token_takes_its_experts_from_no_more_groups_than_it_may() -> None:
    gate = {"kind": "sigmoid_groups", "num_groups": 4, "topk_group": 2}
    model = release_twins(
        grow(mixture(gate=gate, num_experts=8, top_k=3), GrowSpec(num_experts=16))[0], ReleaseTwinsSpec()
    )[0]
    fewer = remove_expert(model, RemoveExpertSpec(expert=0, per_group=True))[0]
    with pytest.raises(SpecError, match="a token would see 2 experts, one of each set of twins, and top_k is 3"):
        remove_expert(fewer, RemoveExpertSpec(expert=1, per_group=True))
    # Whichever twin stays, a pair of them is one expert to a token.
    assert remove_expert(fewer, RemoveExpertSpec(expert=0, per_group=True))[0].spec.moe is not None


def test_a_hierarchy_chooses_between_twins_by_all_of_its_levels() -> None:
    moe = moe_of(Hierarchical(num_domains=2), 8, 2, twins={"roots": (0, 1, 2, 3, 0, 1, 2, 3), "hold": 0.0})
    tensors = {name: tensor.detach() for name, tensor in tensors_of(moe, 12).items()}
    x_TD = torch.randn(50, 12, generator=torch.Generator().manual_seed(2))
    # Experts say the same of both twins: the domain alone decides.
    tensors["weight"][4:] = tensors["weight"][:4]
    favoured_T = (x_TD @ tensors["domain_weight"].t()).argmax(-1)
    ids_TK = decide(moe, tensors, GateCall(x_TD, 2)).expert_ids_TK
    assert torch.equal(ids_TK // 4, favoured_T[:, None].expand(-1, 2))
    assert 0 < int(favoured_T.sum()) < 50


def test_slots_have_no_twins() -> None:
    with pytest.raises(SpecError, match="none sees one of two twins; leave twins out, or choose a gate"):
        moe_of(Soft(), 4, 1, twins={"roots": (0, 1, 0, 1)})


@GATES
def test_forced_experts_have_their_weights_whatever_is_hidden_or_masked(gate: dict[str, Any]) -> None:
    model = grow(mixture(gate=gate), GrowSpec(num_experts=8))[0]
    mask_1LE = torch.zeros(1, 2, 8)
    mask_1LE[..., [0, 4]] = float("-inf")
    forced_TK = torch.tensor([[0, 4]]).expand(IDS.numel(), 2)
    found: list[Routing] = []
    context = RoutingContext(
        forced_TK=forced_TK, domain_T=LAWS, prior=DomainPrior(mask_1LE, 2),
        observe=lambda _, routing: found.append(routing),
    )  # fmt: skip
    with torch.no_grad():
        assert model(IDS, context).isfinite().all()
    for routing in found:
        assert torch.equal(routing.expert_ids_TK, forced_TK)
        # Equal twins have equal halves.
        torch.testing.assert_close(routing.weights_TK, torch.full((IDS.numel(), 2), 0.5))
