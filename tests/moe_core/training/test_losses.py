"""The loss over a frozen head against cross-entropy and its autograd."""

from __future__ import annotations

import pytest
import torch

from moe_core.training.losses import HEAD_ROWS, frozen_head_losses


@pytest.mark.parametrize("rows", [1, 7, HEAD_ROWS, 2 * HEAD_ROWS + 3])
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
