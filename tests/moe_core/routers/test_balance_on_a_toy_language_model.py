"""On a toy language model a balancing bias evens out loads where an auxiliary loss does not, at no cost in loss."""

from __future__ import annotations

import pytest
import torch

from tests.moe_core.routers.toy_language import train

NUM_STEPS = 250


@pytest.mark.slow
def test_the_bias_balances_where_the_auxiliary_loss_leaves_favourites() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The weight of the auxiliary loss is that of the baseline in arXiv 2408.15664.
        auxiliary = train(NUM_STEPS, aux_weight=1e-3)
        loss_free = train(NUM_STEPS, bias_rate=1e-2)
    finally:
        torch.set_num_threads(threads)
    assert auxiliary.max_vio > 0.3
    assert loss_free.max_vio <= 0.05
    assert loss_free.loss <= auxiliary.loss * 1.005
