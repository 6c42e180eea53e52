"""The losses over the output map against cross-entropy and its autograd."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moe_core.training import losses
from moe_core.training.lanes import Lanes
from moe_core.training.losses import frozen_head_losses, mean_head_loss, release_room, rows_at_once

ROWS = 64


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of 64 rows of a head of 50, in either precision."""
    monkeypatch.setattr("moe_core.training.losses.HEAD_BYTES", 1)


def test_logits_of_any_vocabulary_stay_within_their_room() -> None:
    for bytes_of_row in (1, 100, 98_304, 10**9):
        rows = rows_at_once(bytes_of_row)
        assert rows >= 64 and rows % 64 == 0


@pytest.mark.parametrize("rows", [1, 7, ROWS, 2 * ROWS + 3])
def test_the_frozen_head_gives_the_cross_entropy_and_its_gradient(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 16, generator=generator, requires_grad=True)
    head = torch.randn(50, 16, generator=generator)
    target = torch.randint(0, 50, (rows,), generator=generator)
    weight = torch.rand(rows, generator=generator)
    (frozen_head_losses(hidden, head, target) * weight).sum().backward()
    got, hidden.grad = hidden.grad, None
    losses = torch.nn.functional.cross_entropy(hidden @ head.t(), target, reduction="none")
    (losses * weight).sum().backward()
    torch.testing.assert_close(frozen_head_losses(hidden, head, target), losses)
    torch.testing.assert_close(got, hidden.grad)


def test_a_batch_without_a_position_to_predict_has_no_loss_and_does_not_fail() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    losses = frozen_head_losses(hidden, torch.ones(3, 4), torch.zeros(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == (0,)


@pytest.mark.parametrize("rows", [1, ROWS, 2 * ROWS + 3])
def test_the_mean_gives_both_gradients_whatever_follows_it(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 50, (rows,), generator=generator)
    plain = torch.nn.functional.cross_entropy(hidden @ head.t(), target)
    ours = mean_head_loss(hidden, head, target)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=0.0)
    wanted = torch.autograd.grad(plain**2, (hidden, head))
    got = torch.autograd.grad(ours**2, (hidden, head))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_a_frozen_head_costs_the_mean_no_gradient() -> None:
    hidden, head = torch.ones(2, 4, requires_grad=True), torch.ones(3, 4)
    mean_head_loss(hidden, head, torch.tensor([0, 2])).backward()
    assert hidden.grad is not None and head.grad is None


def test_a_batch_that_comes_between_changes_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(9, 16, generator=generator, requires_grad=True) for _ in range(2))
    head = torch.randn(50, 16, generator=generator, requires_grad=True)
    target = torch.arange(9)
    (alone,) = torch.autograd.grad(mean_head_loss(hidden, head, target), hidden)
    loss = mean_head_loss(hidden, head, target)
    mean_head_loss(other, head, target.flip(0))
    (between,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(alone, between)


def one_pass(loss: Callable[..., torch.Tensor] = mean_head_loss) -> torch.Tensor:
    hidden = torch.ones(3, 4, requires_grad=torch.is_grad_enabled())
    return loss(hidden, torch.ones(5, 4), torch.arange(3)).sum()


@pytest.mark.parametrize("loss", [mean_head_loss, frozen_head_losses])
def test_room_first_used_for_inference_serves_training(loss: Callable[..., torch.Tensor]) -> None:
    release_room()
    with torch.inference_mode():
        one_pass(loss)
    one_pass(loss).backward()


def test_room_lies_on_the_processor_whatever_the_default_device_is() -> None:
    release_room()
    torch.set_default_device("meta")
    try:
        room = losses._kept_room(6, torch.float32)
    finally:
        torch.set_default_device(None)
    assert room.device.type == "cpu"


def test_room_of_another_dtype_is_given_back_before_its_successor_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release_room()
    first, seen, empty = weakref.ref(losses._kept_room(6, torch.float32)), [], torch.empty

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(first())
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", watched)
    losses._kept_room(6, torch.bfloat16)
    assert seen == [None]


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_no_room_outlives_the_lanes(num_lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lanes would leave torch with one thread for the tests that follow.
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def kept(_: int) -> weakref.ref[torch.Tensor]:
        one_pass()
        return weakref.ref(losses._kept.room)

    with Lanes(num_lanes) as lanes:
        rooms = lanes.each(kept, range(4))
        assert any(room() is not None for room in rooms)
    assert all(room() is None for room in rooms)


@pytest.mark.parametrize("loss", [mean_head_loss, frozen_head_losses])
def test_a_gradient_of_the_gradient_is_refused_rather_than_wrong(
    loss: Callable[..., torch.Tensor],
) -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    total = (loss(hidden, torch.randn(5, 4), torch.arange(3)) ** 2).sum()
    (gradient,) = torch.autograd.grad(total, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
