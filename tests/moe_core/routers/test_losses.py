"""Losses of routing against the plain formula, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from moe_core.routers import route
from moe_core.routers.losses import balance_loss, label_loss, z_loss


def routed(logits: list[list[float]], top_k: int = 1):
    """A routing whose logits are given: hidden states are the logits, the gate is the identity."""
    logits_TE = torch.tensor(logits, requires_grad=True)
    return logits_TE, route(logits_TE, torch.eye(logits_TE.shape[1]), top_k=top_k)


def test_the_label_loss_is_minus_log_of_the_mapped_experts_probability() -> None:
    _, routing = routed([[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3.0), 0.0, 0.0]])
    labels_NE = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    loss = label_loss(routing, labels_NE, torch.tensor([0, 1]), torch.tensor([True, True]))
    # Half of the probability for the first token (two of four), half for the second (3 of 6).
    assert float(loss.detach()) == pytest.approx(math.log(2.0))


def test_the_label_loss_heeds_neither_padding_nor_tokens_of_no_domain() -> None:
    logits_TE, routing = routed([[1.0, 0.0], [5.0, 0.0], [-5.0, 0.0]])
    labels_NE = torch.tensor([[1.0, 0.0]])
    loss = label_loss(routing, labels_NE, torch.tensor([0, 0, -1]), torch.tensor([True, False, True]))
    loss.backward()
    assert logits_TE.grad is not None
    assert logits_TE.grad[0].abs().sum() > 0
    assert logits_TE.grad[1:].abs().sum() == 0
    assert float(label_loss(routing, labels_NE, torch.tensor([-1, -1, -1]), torch.tensor([True] * 3))) == 0.0


def test_the_balance_loss_is_one_when_even_and_e_when_one_expert_takes_all() -> None:
    even = [[9.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 0.0, 9.0]]
    _, routing = routed(even)
    assert float(balance_loss(routing, torch.tensor([True] * 4))) == pytest.approx(1.0)
    _, routing = routed([[99.0, 0.0, 0.0, 0.0]] * 4)
    assert float(balance_loss(routing, torch.tensor([True] * 4))) == pytest.approx(4.0)


def test_the_balance_loss_pushes_the_busy_expert_down() -> None:
    logits_TE, routing = routed([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    balance_loss(routing, torch.tensor([True, True, False])).backward()
    assert logits_TE.grad is not None
    # A gradient step goes against the gradient: the busy expert's logit sinks, padding feels nothing.
    assert (logits_TE.grad[:2, 0] > 0).all()
    assert (logits_TE.grad[:2, 1] < 0).all()
    assert logits_TE.grad[2].abs().sum() == 0


def test_the_balance_loss_can_judge_by_a_longer_memory_than_the_batch() -> None:
    _, routing = routed([[9.0, 0.0], [9.0, 0.0]])
    even = balance_loss(routing, torch.tensor([True, True]), torch.tensor([0.5, 0.5]))
    assert float(even) == pytest.approx(1.0)


def test_the_z_loss_of_zero_logits_is_the_square_of_log_e() -> None:
    _, routing = routed([[0.0] * 8, [0.0] * 8])
    assert float(z_loss(routing, torch.tensor([True, False]))) == pytest.approx(math.log(8) ** 2)
