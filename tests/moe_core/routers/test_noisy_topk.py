"""Noisy top-k: noise only while training, and a smooth load that says what drawing again would do."""

from __future__ import annotations

import pytest
import torch

from moe_core.routers import GateCall, decide
from moe_core.routers.noisy_topk import chance_of_choice
from moe_core.spec.gate import NoisyTopk
from tests.moe_core.routers.gate_cases import ask, moe_of, tensors_of


def test_serving_is_plain_top_k() -> None:
    logits = torch.randn(20, 5)
    found = ask(NoisyTopk(), logits, 2)
    assert torch.equal(found.logits_TE, logits)
    assert not found.losses


def test_equal_generators_give_equal_noise_and_others_other() -> None:
    logits = torch.randn(20, 5)
    first, again, other = (
        ask(NoisyTopk(), logits, 2, training=True, rng=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.logits_TE, again.logits_TE)
    assert not torch.equal(first.logits_TE, other.logits_TE)


def test_the_noise_is_softplus_of_its_own_map() -> None:
    width = torch.eye(4) * torch.tensor([-9.0, 0.0, 2.0, 4.0])
    rng = torch.Generator().manual_seed(0)
    found = ask(
        NoisyTopk(noise_floor=0.0), torch.ones(20_000, 4), 2, tensors={"noise_weight": width}, training=True, rng=rng
    )  # fmt: skip
    spread = (found.logits_TE - 1.0).std(0)
    expected = torch.nn.functional.softplus(torch.tensor([-9.0, 0.0, 2.0, 4.0]))
    torch.testing.assert_close(spread, expected, rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_chance_of_a_choice_is_what_drawing_again_gives(top_k: int) -> None:
    generator = torch.Generator().manual_seed(top_k)
    clean, spread = torch.randn(1, 5, generator=generator), 0.5 + torch.rand(1, 5, generator=generator)
    noisy = clean + spread * torch.randn(1, 5, generator=generator)
    chances = chance_of_choice(clean, noisy, spread, top_k)
    for expert in range(5):
        drawn = noisy.repeat(40_000, 1)
        drawn[:, expert] = clean[0, expert] + spread[0, expert] * torch.randn(40_000, generator=generator)
        seen = (drawn.topk(top_k, -1).indices == expert).any(-1).float().mean()
        assert float(chances[0, expert]) == pytest.approx(float(seen), abs=0.01)
    assert (chance_of_choice(clean, noisy, spread, 5) == 1.0).all()


def test_the_load_loss_teaches_both_maps() -> None:
    moe = moe_of(NoisyTopk(), 4, 2)
    tensors = tensors_of(moe, 6)
    hidden_TD = torch.randn(30, 6) + 1.0
    rng = torch.Generator().manual_seed(0)
    found = decide(moe, tensors, GateCall(hidden_TD, 2, training=True, rng=rng))
    found.losses["load"].backward()
    for name in ("weight", "noise_weight"):
        grad = tensors[name].grad
        assert grad is not None
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("strength", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_chance_of_a_choice_counts_the_selection_bias(top_k: int, strength: float, masked: bool) -> None:
    """Drawn again, experts are the k best of softmax plus bias: the order in which the gate chooses."""
    generator = torch.Generator().manual_seed(top_k)
    clean, spread = torch.randn(1, 5, generator=generator), 0.5 + torch.rand(1, 5, generator=generator)
    if masked:
        clean[0, 3] = float("-inf")
    noisy = clean + spread * torch.randn(1, 5, generator=generator)
    bias_E = strength * torch.randn(5, generator=generator)
    chances = chance_of_choice(clean, noisy, spread, top_k, bias_E)
    for expert in range(5):
        drawn = noisy.repeat(40_000, 1)
        drawn[:, expert] = clean[0, expert] + spread[0, expert] * torch.randn(40_000, generator=generator)
        scores = (torch.softmax(drawn, -1) + bias_E).masked_fill(drawn == float("-inf"), float("-inf"))
        best = scores.topk(top_k, -1)
        seen = ((best.indices == expert) & (best.values > float("-inf"))).any(-1).float().mean()
        assert float(chances[0, expert]) == pytest.approx(float(seen), abs=0.01)
    if not strength:
        torch.testing.assert_close(chances, chance_of_choice(clean, noisy, spread, top_k))


def test_a_bias_that_decides_alone_is_a_load_that_is_not_even() -> None:
    """Two experts take everything whatever is drawn; their load is twice the mean."""
    bias_E = torch.tensor([5.0, 5.0, -5.0, -5.0])
    logits_TE = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    call = {"training": True, "rng": torch.Generator().manual_seed(1)}
    found = ask(NoisyTopk(), logits_TE, 2, selection_bias_E=bias_E, **call)
    assert found.losses["load"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_load_is_that_of_its_value(masked: bool, biased: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    x_TD = torch.randn(64, 16, generator=generator)
    maps = [0.3 * torch.randn(8, 16, generator=generator), 0.1 * torch.randn(8, 16, generator=generator)]
    bias_TE = torch.zeros(64, 8)
    if masked:
        bias_TE[::2, 5:] = float("-inf")
    bias_E = torch.linspace(-0.05, 0.05, 8) if biased else None

    def load(weight_ED: torch.Tensor, noise_ED: torch.Tensor) -> torch.Tensor:
        rng = torch.Generator().manual_seed(1)
        call = GateCall(
            x_TD, 2, training=True, rng=rng, num_experts=8, bias_TE=bias_TE, selection_bias_E=bias_E
        )
        weights = {"weight": weight_ED, "noise_weight": noise_ED}
        return decide(moe_of(NoisyTopk(), 8, 2), weights, call).losses["load"]

    ours = torch.autograd.grad(load(*(one.requires_grad_() for one in maps)), maps)
    with torch.no_grad():
        for place in (0, 1):
            for _ in range(5):
                step = [torch.zeros(8, 16), torch.zeros(8, 16)]
                step[place] = torch.randn(8, 16, generator=generator)
                ahead, behind = (
                    load(*(one + sign * 2e-4 * own for one, own in zip(maps, step, strict=True)))
                    for sign in (1, -1)
                )
                wanted = float(ahead - behind) / 4e-4
                found = float(sum((one * own).sum() for one, own in zip(ours, step, strict=True)))
                assert found == pytest.approx(wanted, rel=0.02, abs=0.02)


def test_padding_has_no_load_and_no_tokens_have_none() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    real = torch.tensor([True, True, False])
    call = {"training": True, "rng": torch.Generator().manual_seed(0)}
    even = ask(NoisyTopk(noise_floor=0.0), logits, 1, real_T=real, **call).losses["load"]
    lopsided = ask(NoisyTopk(noise_floor=0.0), logits, 1, **call).losses["load"]
    assert even.item() < 0.01 < lopsided.item()
    assert float(ask(NoisyTopk(), torch.empty(0, 2), 1, **call).losses["load"]) == 0.0
