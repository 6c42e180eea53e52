"""One expert a token, weighed by its probability.

Shapes: T tokens, D model width, E experts.
Source: Fedus, Zoph & Shazeer 2021, "Switch Transformers", arXiv 2101.03961, section 2.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.logits import linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.gate import Switch


def switch(gate: Switch, weights: GateWeights, call: GateCall) -> Routing:
    """The best expert. While training, inputs are multiplied by uniform numbers from 1 - jitter to 1 + jitter."""
    if call.training and gate.jitter and call.rng is not None:
        hidden_TD = call.hidden_TD.float()
        noise_TD = torch.empty_like(hidden_TD).uniform_(
            1.0 - gate.jitter, 1.0 + gate.jitter, generator=call.rng
        )
        call = replace(call, hidden_TD=hidden_TD * noise_TD)
    return softmax_choice(linear_logits(weights, call), call, renormalised=False)
