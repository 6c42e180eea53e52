"""On a toy language model a balancing bias evens out loads as no weight of an auxiliary loss does, at no cost in loss.

What one weight of the loss leaves changes much with the seed, so more than one of both is tried; the whole sweep is in
docs/reference/routers.md.
"""

from __future__ import annotations

import pytest
import torch

from tests.moe_core.routers.toy_language import Outcome, train

NUM_STEPS = 250
# The weight of the baseline in arXiv 2408.15664, and one a hundred times as strong.
WEIGHTS = (1e-3, 1e-1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2])
def test_the_bias_balances_where_the_auxiliary_loss_leaves_favourites(seed: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        auxiliary: list[Outcome] = [train(NUM_STEPS, aux_weight=weight, seed=seed) for weight in WEIGHTS]
        loss_free = train(NUM_STEPS, bias_rate=1e-2, seed=seed)
    finally:
        torch.set_num_threads(threads)
    assert loss_free.max_vio <= 0.05
    assert auxiliary[0].max_vio > 0.3
    # More weight evens more, and still leaves several times as much.
    assert auxiliary[1].max_vio < auxiliary[0].max_vio
    assert auxiliary[1].max_vio > 2.5 * loss_free.max_vio
    assert loss_free.loss <= min(outcome.loss for outcome in auxiliary) * 1.005
