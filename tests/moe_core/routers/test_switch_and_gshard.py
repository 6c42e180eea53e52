"""Switch and GShard's top-2 against transformers' Switch Transformers and NLLB-MoE, capacity included."""

from __future__ import annotations

import pytest
import torch
from transformers import NllbMoeConfig, SwitchTransformersConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from moe_core.routers import GateCall, Routing, decide
from moe_core.spec import CapacitySpec
from moe_core.spec.gate import GshardTop2, Switch
from tests.moe_core.routers.gate_cases import ask, moe_of


def dense(routing: Routing) -> torch.Tensor:
    """(T, E): the weight of each expert, zero where it was not chosen."""
    out_TE = torch.zeros_like(routing.probs_TE)
    return out_TE.scatter_add(1, routing.expert_ids_TK.clamp(min=0), routing.weights_TK)


@pytest.mark.parametrize("capacity", [3, 100])
def test_switch_equals_that_of_transformers(capacity: int) -> None:
    torch.manual_seed(3)
    config = SwitchTransformersConfig(
        hidden_size=12, num_experts=4, expert_capacity=capacity, router_jitter_noise=0.0
    )
    theirs = SwitchTransformersTop1Router(config).eval()
    theirs.classifier.weight.data.normal_()
    hidden_TD = torch.randn(24, 12)
    one_hot, weight, _ = theirs(hidden_TD[None])
    # 24 tokens, 4 experts: a factor of capacity / 6.
    limit = CapacitySpec(train_factor=capacity / 6, eval_factor=capacity / 6)
    moe = moe_of(Switch(), 4, 1, capacity=limit)
    found = decide(moe, {"weight": theirs.classifier.weight}, GateCall(hidden_TD, 1))
    torch.testing.assert_close(dense(found), one_hot[0] * weight[0])
    assert bool((found.expert_ids_TK < 0).any()) == (capacity == 3)


@pytest.mark.parametrize("prioritised", [False, True])
def test_gshard_equals_nllb_with_its_capacity(prioritised: bool) -> None:
    torch.manual_seed(4)
    config = NllbMoeConfig(
        d_model=12, num_experts=4, expert_capacity=9, second_expert_policy="all", moe_eval_capacity_token_fraction=-1.0,
        normalize_router_prob_before_dropping=True, batch_prioritized_routing=prioritised,
    )  # fmt: skip
    theirs = NllbMoeTop2Router(config).eval()
    theirs.classifier.weight.data.normal_()
    hidden_TD = torch.randn(24, 12)
    _, weights_TE, _ = theirs(hidden_TD)
    limit = CapacitySpec(train_factor=9 / 12, priority="weight" if prioritised else "position")
    call = GateCall(hidden_TD, 2, training=True)
    found = decide(moe_of(GshardTop2(), 4, 2, capacity=limit), {"weight": theirs.classifier.weight}, call)
    if not prioritised:
        torch.testing.assert_close(dense(found), weights_TE)
        assert (found.expert_ids_TK < 0).any()
    # Theirs orders by the first choice's probability among all experts, ours each choice by its own weight.
    assert found.overflow is not None
    assert int(found.overflow.kept_TK.sum()) == int((weights_TE > 0).sum())


def test_the_second_expert_is_kept_with_twice_its_weight() -> None:
    logits = torch.tensor([0.0, -1.0, -9.0]).repeat(20_000, 1)
    rng = torch.Generator().manual_seed(0)
    found = ask(GshardTop2(), logits, 2, training=True, rng=rng)
    second = torch.softmax(torch.tensor([0.0, -1.0]), 0)[1]
    assert float(found.chosen_TK[:, 1].float().mean()) == pytest.approx(float(2 * second), abs=0.01)
    assert found.chosen_TK[:, 0].all()
    # The first keeps its weight whether or not the second came along.
    assert found.weights_TK[:, 0].unique().numel() == 1


def test_a_second_of_half_the_weight_is_always_kept() -> None:
    rng = torch.Generator().manual_seed(0)
    assert ask(GshardTop2(), torch.zeros(500, 4), 2, training=True, rng=rng).chosen_TK.all()


def test_forced_seconds_are_left_to_no_chance() -> None:
    forced_TK = torch.tensor([[1, 2]] * 500)
    call = {"training": True, "rng": torch.Generator().manual_seed(0)}
    found = ask(GshardTop2(), torch.tensor([[0.0, 3.0, -3.0]] * 500), 2, forced_TK=forced_TK, **call)
    assert torch.equal(found.expert_ids_TK, forced_TK)
    assert (found.weights_TK > 0.0).all()


@pytest.mark.parametrize("call", [{}, {"training": True}, {"rng": torch.Generator()}])
def test_there_is_no_chance_when_serving_nor_without_a_generator(call: dict[str, object]) -> None:
    logits = torch.tensor([[5.0, -5.0, 0.0]]).repeat(100, 1)
    assert ask(GshardTop2(), logits, 2, **call).chosen_TK.all()
    plain = ask(Switch(), logits, 1)
    assert torch.equal(ask(Switch(jitter=0.5), logits, 1, **call).logits_TE, plain.logits_TE)


def test_jitter_multiplies_the_inputs_within_its_bounds() -> None:
    logits = torch.full((1000, 2), 3.0)
    found = ask(Switch(jitter=0.1), logits, 1, training=True, rng=torch.Generator().manual_seed(1))
    ratio = found.logits_TE / 3.0
    assert 0.9 <= float(ratio.min()) < 0.91
    assert 1.09 < float(ratio.max()) <= 1.1


def test_the_weight_of_switch_is_the_probability_whatever_the_norm() -> None:
    found = ask(Switch(), torch.tensor([[0.0, 1.0]]), 1, norm_topk_prob=True)
    assert found.weights_TK[0, 0] == found.probs_TE[0, 1]
