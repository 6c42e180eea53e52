"""Whitened coordinates change how a gate learns, not what it says."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.training.whitened_adamw import WhitenedAdamW
from moe_core.training.whitening import Whitening


def skewed_inputs(tokens: int = 400, width: int = 12, seed: int = 0) -> Tensor:
    """Inputs as routers see them: a large common mean, and variance that differs a hundredfold between directions."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 1, width)
    turn = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
    return (torch.randn(tokens, width, generator=draw) * scale) @ turn + 3.0 * torch.ones(width)


def test_whitened_inputs_have_mean_zero_and_unit_variance_in_every_direction() -> None:
    x = skewed_inputs()
    found = Whitening.of(x)
    white = (x - found.mean_D) @ found.whiten_DD
    torch.testing.assert_close(white.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    variances = torch.linalg.eigvalsh(white.t() @ white / len(x))
    # Directions with less variance than the ridge stay below one; the strong ones are at one.
    assert float(variances.max()) <= 1.0 + 1e-3
    assert float(variances.median()) > 0.5
    assert float(torch.linalg.eigvalsh(torch.cov(x.t())).max()) > 50.0


def test_the_common_direction_measures_about_one_on_every_input() -> None:
    x = skewed_inputs()
    along = x @ Whitening.of(x).one_D
    assert abs(float(along.mean()) - 1.0) < 0.05
    assert float(along.std()) < 0.2


def test_splitting_and_joining_a_gate_gives_the_same_gate() -> None:
    found = Whitening.of(skewed_inputs())
    gate = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.join(*found.split(gate)), gate, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_autograd_through_the_join() -> None:
    x = skewed_inputs()
    found = Whitening.of(x)
    v, b = (part.requires_grad_() for part in found.split(torch.randn(4, 12)))
    gate = found.join(v, b)
    gate.retain_grad()
    torch.log_softmax(x @ gate.t(), dim=-1)[:, 1].mean().backward()
    assert gate.grad is not None and v.grad is not None and b.grad is not None
    v_grad, b_grad = found.gradients(gate.grad)
    torch.testing.assert_close(v_grad, v.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(b_grad, b.grad, atol=1e-5, rtol=1e-4)


def test_a_balance_that_plain_steps_overshoot_is_reached_in_whitened_coordinates() -> None:
    """One gate on skewed inputs learns to spread them evenly: plain AdamW swings, the whitened one settles."""
    x = skewed_inputs(2000)

    def worst_load(whitened: bool) -> float:
        gate = (0.02 * torch.randn(8, 12, generator=torch.Generator().manual_seed(2))).requires_grad_()
        kind = Whitening.of(x)
        plain = torch.optim.AdamW([gate], lr=2e-2)
        learner = WhitenedAdamW({"g": gate}, {"g": kind})
        for _ in range(16):
            probs = torch.softmax(x @ gate.t(), dim=-1)
            share = torch.bincount(probs.topk(2).indices.flatten(), minlength=8) / (2 * len(x))
            (gradient,) = torch.autograd.grad(8 * (share * probs.mean(0)).sum(), [gate])
            if whitened:
                learner.step([gradient], 3e-2, 1.0)
            else:
                gate.grad = gradient
                plain.step()
        load = torch.bincount((x @ gate.t()).topk(2).indices.flatten(), minlength=8).float()
        return float(load.max() / load.mean() - 1.0)

    assert worst_load(whitened=True) < 0.6 * worst_load(whitened=False)


def test_weight_decay_pulls_at_the_plain_gate_as_it_would_without_coordinates() -> None:
    gate = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    before = gate.clone()
    learner = WhitenedAdamW({"g": gate}, {"g": Whitening.of(skewed_inputs())}, weight_decay=0.5)
    learner.step([torch.zeros(4, 12)], 0.1, 1.0)
    torch.testing.assert_close(gate, before * (1 - 0.1 * 0.5), atol=1e-4, rtol=1e-4)
