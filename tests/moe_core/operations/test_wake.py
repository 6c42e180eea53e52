"""An idle expert gets the tokens that were nearest to it; nothing but that expert and its gate row changes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.context import RoutingContext
from moe_core.operations import grow, wake_expert
from moe_core.operations.parts import per_expert, tensors_of
from moe_core.operations.passes import loads
from moe_core.operations.picking import pick_scores
from moe_core.operations.wake import draw_loss
from moe_core.spec.operations import GrowSpec, WakeExpertSpec
from tests.moe_core.operations.models import mixture, some_prompts

SPEC = WakeExpertSpec(steps=40, learning_rate=2e-2)
IDLE = (2, 1)
BIASED = (
    {"kind": "softmax_topk", "logit_bias": True},
    {"kind": "sigmoid_groups", "selection_bias": True},
    {"kind": "softmax_topk", "selection_bias": True},
)


def lazy() -> Decoder:
    """Expert 2 of the first layer and 1 of the second lose against all others: no token reaches them."""
    model = mixture(num_experts=4, top_k=1)
    with torch.no_grad():
        for layer, expert in zip(model.moe_layers(), IDLE, strict=True):
            others = [row for row in range(4) if row != expert]
            # The mean of the others is never above the best of them.
            layer.router.weight[expert] = layer.router.weight[others].mean(0)
    return model


def test_an_idle_expert_gets_a_fair_share_and_all_others_stay_bit_for_bit() -> None:
    model, prompts = lazy(), some_prompts(per_domain=16)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    load_LE = loads(model, prompts)
    assert all(
        int(load_E[expert]) <= 0.01 * float(load_E.double().mean())
        for load_E, expert in zip(load_LE, IDLE, strict=True)
    )
    woken, report = wake_expert(model, SPEC, prompts)
    # Found by their load, without being named.
    assert report["woken"] == list(IDLE)
    assert max(report["share_before"]) < 0.01
    assert all(0.3 < share < 2.0 for share in report["share_after"])
    for old, new, expert in zip(model.moe_layers(), woken.moe_layers(), IDLE, strict=True):
        for name, tensor in per_expert(new).items():
            others = [row for row in range(4) if row != expert]
            assert torch.equal(tensor[others], per_expert(old)[name][others]), name
            assert not torch.equal(tensor[expert], per_expert(old)[name][expert]), name
    for name, tensor in tensors_of(woken).items():
        if ".experts." not in name and ".router." not in name:
            assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    json.dumps(report)


def test_tokens_that_do_not_reach_it_hear_the_same_as_before() -> None:
    model, prompts = lazy(), some_prompts(per_domain=16)
    woken, _ = wake_expert(model, SPEC, prompts)
    x_TD = torch.randn(64, 48, generator=torch.Generator().manual_seed(3))
    unchanged = 0
    for old, new, expert in zip(model.moe_layers(), woken.moe_layers(), IDLE, strict=True):
        chosen: list[Any] = []
        context = RoutingContext(observe=lambda _layer, routing: chosen.append(routing.expert_ids_TK))  # noqa: B023
        with torch.no_grad():
            was, now = old(x_TD, context), new(x_TD, context)
        spared_T = ~(chosen[0] == expert).any(-1) & ~(chosen[1] == expert).any(-1)
        unchanged += int(spared_T.sum())
        assert torch.equal(was[spared_T], now[spared_T])
    assert unchanged > 16


def test_without_the_gates_loss_an_expert_that_nothing_reaches_stays_idle() -> None:
    model, prompts = lazy(), some_prompts(per_domain=16)
    _, report = wake_expert(model, SPEC.model_copy(update={"gate_weight": 0.0}), prompts)
    assert max(report["share_after"]) < 0.05


def test_more_tokens_are_drawn_where_a_larger_share_is_asked_for() -> None:
    model, prompts = lazy(), some_prompts(per_domain=16)
    shares = [
        sum(wake_expert(model, SPEC.model_copy(update={"share": share}), prompts)[1]["share_after"])
        for share in (0.4, 1.6)
    ]
    assert shares[1] > shares[0] + 0.4


@pytest.mark.parametrize(("share", "drawn"), [(0.5, 3), (1.0, 6), (1.5, 9), (8.0, 12)])
def test_the_share_is_one_of_the_fair_share_of_all_places(
    share: float, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two of four experts for each token the fair share is half of the tokens: 6 of 12."""
    asked: list[float] = []

    def noted(scores_TE: torch.Tensor, expert: int, part: float, top_k: int) -> torch.Tensor:
        asked.append(part)
        return draw_loss(scores_TE, expert, part, top_k)

    monkeypatch.setattr("moe_core.operations.wake.draw_loss", noted)
    spec = WakeExpertSpec(steps=1, learning_rate=1e-3, share=share)
    wake_expert(mixture(num_experts=4, top_k=2), spec, some_prompts(per_domain=2))
    assert asked and {part * 12 for part in asked} == {drawn}


def test_the_draw_by_hand() -> None:
    """Four tokens; leads of expert 2 over the better one of two others: -1, -3, -0.5, 1. Half of them are drawn."""
    scores_TE = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 1.5, 1.0], [0.0, 0.0, 1.0]])
    loss = draw_loss(scores_TE, expert=2, share=0.5, top_k=1)

    def soft(lead: float) -> float:
        return math.log1p(math.exp(-lead))

    drawn, held = (soft(-0.5) + soft(1.0)) / 2, (soft(1.0) + soft(3.0)) / 2
    assert float(loss) == pytest.approx((drawn + held) / 2, rel=1e-5)
    # With two places a token needs only beat the second best.
    both = draw_loss(scores_TE[:1], expert=2, share=1.0, top_k=2)
    assert float(both) == pytest.approx(soft(1.0 - 0.0), rel=1e-5)


@pytest.mark.parametrize("gate", BIASED)
def test_an_expert_that_its_bias_makes_idle_wakes(gate: dict[str, Any]) -> None:
    """No row learns its way past a bias of -6; and one that counts for the choice only gets no gradient at all."""
    model, prompts = mixture(gate=gate), some_prompts(per_domain=8)
    name = "bias" if gate.get("logit_bias") else "selection_bias"
    with torch.no_grad():
        for layer in model.moe_layers():
            layer.router.tensors[name].zero_()
            layer.router.tensors[name][1] = -6.0
    woken, report = wake_expert(model, SPEC.model_copy(update={"steps": 60}), prompts)
    before, after = (
        [layer.router.tensors[name].detach() for layer in one.moe_layers()] for one in (model, woken)
    )
    assert report["woken"] == [1, 1] and max(report["share_before"]) < 0.05
    assert all(0.4 < share < 2.0 for share in report["share_after"])
    assert all(0.0 < raised <= 6.0 for raised in report["bias_raised"])
    assert all(float(bias_E[1]) == -6.0 for bias_E in before)
    assert all(float(bias_E[1]) > -6.0 and not bias_E[[0, 2, 3]].any() for bias_E in after)


@pytest.mark.parametrize("gate", [*BIASED, {"kind": "softmax_topk"}, {"kind": "quantile"}])
def test_the_scores_are_those_that_the_gate_picks_with(gate: dict[str, Any]) -> None:
    model = mixture(num_experts=8, gate=gate, temperature=2.0)
    router = next(iter(model.moe_layers())).router
    with torch.no_grad():
        for name in set(router.tensors) & {"bias", "selection_bias"}:
            router.tensors[name].copy_(0.3 * torch.randn(8, generator=torch.Generator().manual_seed(1)))
    x_TD = torch.randn(64, 48, generator=torch.Generator().manual_seed(2))
    chosen_TK = router(x_TD, RoutingContext(), 0).expert_ids_TK
    scores_TE = pick_scores(router, x_TD, expert=3)
    assert torch.equal(scores_TE.topk(2, dim=-1).indices.sort().values, chosen_TK.sort().values)
    scores_TE[:, 3].sum().backward()
    for name, tensor in router.tensors.items():
        if tensor.requires_grad:
            assert tensor.grad is not None and tensor.grad[3].any(), name
            assert not tensor.grad[[0, 1, 2, 4, 5, 6, 7]].any(), name


def test_where_nobody_can_be_idle_it_is_said() -> None:
    prompts = some_prompts()
    with pytest.raises(SpecError, match="all 2 experts are always chosen"):
        wake_expert(mixture(num_experts=2, top_k=2), SPEC, prompts)
    with pytest.raises(SpecError, match="twins share their tokens"):
        wake_expert(grow(mixture(), GrowSpec(num_experts=8))[0], SPEC, prompts)
    with pytest.raises(SpecError, match="expert 4 is outside the 4"):
        wake_expert(mixture(), SPEC.model_copy(update={"expert": 4}), prompts)
