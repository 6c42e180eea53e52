"""A gate's decision in one kernel on a GPU: prior, scores, group limit, choice and weights.

T tokens, E experts, K top_k.
"""

from __future__ import annotations

from typing import Any

import torch

from moe_core.kernels.dispatch import has_triton
from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.logits import raw_logits
from moe_core.routers.routing import Routing


def fused_topk(
    weights: GateWeights, call: GateCall, *, num_groups: int = 1, **options: Any
) -> Routing | None:
    """The decision by `moe_core.kernels.triton.topk`, whose `options` are passed on; None where it cannot be had.

    It cannot on a CPU, where gradients are recorded, where ids are forced, with a floor of the domain prior or noise, at a
    temperature of 0, and for sizes that the kernel has not.
    """
    plain = call.forced_TK is None and call.floor is None and call.noise_TE is None and call.temperature > 0.0
    if not (call.hidden_TD.is_cuda and plain and has_triton()) or torch.is_grad_enabled():
        return None
    from moe_core.kernels.triton.topk import takes, topk

    if not takes(weights["weight"].shape[0], call.top_k, num_groups):
        return None
    bias_TE, chosen_E = call.bias_TE, call.selection_bias_E
    ids_TK, weights_TK, logits_TE, shares_TE = topk(
        raw_logits(weights, call),
        top_k=call.top_k,
        temperature=call.temperature,
        prior_TE=None if bias_TE is None else bias_TE.float().contiguous(),
        selection_bias_E=None if chosen_E is None else chosen_E.float().contiguous(),
        num_groups=num_groups,
        **options,
    )
    return Routing(ids_TK, weights_TK, logits_TE, shares_TE)
