"""What a batch costs a Soft MoE layer: nothing grows with the square of the number of sequences."""

from __future__ import annotations

import torch

from moe_core.routers.call import GateCall
from moe_core.routers.soft import soft
from moe_core.spec.gate import Soft


def test_what_is_kept_grows_with_the_tokens_not_with_their_square() -> None:
    kept = []
    for num_sequences in (4, 32):
        x_TD = torch.randn(num_sequences * 16, 8)
        weights = {"weight": torch.randn(8, 8), "scale": torch.ones(1)}
        sequence_T = torch.arange(num_sequences).repeat_interleave(16)
        mix = soft(Soft(slots_per_expert=2), weights, GateCall(x_TD, 1, sequence_T=sequence_T)).mix
        assert mix is not None
        kept.append(mix.dispatch_BSP.numel() + mix.combine_BPS.numel())
        # The same as one big matrix.
        torch.testing.assert_close(mix.slots_of(x_TD), mix.dispatch_RT @ x_TD)
        slots_RD = mix.slots_of(x_TD)
        torch.testing.assert_close(mix.tokens_of(slots_RD), mix.combine_TR @ slots_RD)
    assert kept[1] == 8 * kept[0]
