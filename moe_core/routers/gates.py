"""From a gate's specification to its decision: one function for each kind, asked by the layer.

T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moe_core.errors import SpecError
from moe_core.routers.base import base
from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.capacity import within_capacity
from moe_core.routers.checks import check_call, check_values
from moe_core.routers.choosing import without_masked
from moe_core.routers.expert_choice import expert_choice
from moe_core.routers.full_precision import in_full_precision
from moe_core.routers.gshard_top2 import gshard_top2
from moe_core.routers.hash import hash_gate
from moe_core.routers.hierarchical import hierarchical
from moe_core.routers.logits import NEG_INF
from moe_core.routers.noisy_topk import noisy_topk
from moe_core.routers.quantile import quantile_gate
from moe_core.routers.routing import Routing
from moe_core.routers.sigmoid_groups import sigmoid_groups
from moe_core.routers.sinkhorn import sinkhorn_gate
from moe_core.routers.soft import soft
from moe_core.routers.softmax_topk import softmax_topk
from moe_core.routers.sparsemax import sparsemax_gate
from moe_core.routers.switch import switch
from moe_core.routers.top_p import top_p
from moe_core.routers.twins import with_one_of_twins
from moe_core.spec import MoeSpec
from moe_core.spec.gate import Base

# Values in, values out: no gate keeps anything between two calls.
GateFunction = Callable[[Any, GateWeights, GateCall], Routing]

GATES: dict[str, GateFunction] = {
    "softmax_topk": softmax_topk,
    "sigmoid_groups": sigmoid_groups,
    "sparsemax": sparsemax_gate,
    "top_p": top_p,
    "switch": switch,
    "gshard_top2": gshard_top2,
    "noisy_topk": noisy_topk,
    "sinkhorn": sinkhorn_gate,
    "quantile": quantile_gate,
    "expert_choice": expert_choice,
    "base": base,
    "soft": soft,
    "hash": hash_gate,
    "hierarchical": hierarchical,
}


def decide(moe: MoeSpec, weights: GateWeights, call: GateCall) -> Routing:
    """Where the tokens of one call go, by the gate of a mixture and its tensors.

    The balancing bias that is stored with the gate adds to that of the call. Of twins each token sees one. Where ids are
    forced, neither masks nor twins have a say. All of it is float32, under `torch.autocast` too.
    Raises SpecError for shapes and dtypes that do not fit, another top_k than the mixture's, and what a gate needs and was
    not given; where they are on the CPU (elsewhere nothing waits for them) for forced ids that are no expert or twice in a
    row, floors that are no share below one, and words that a table does not have.
    """
    if call.top_k != moe.top_k:
        raise SpecError(f"top_k ({call.top_k}) must be that of the mixture ({moe.top_k})")
    check_call(call, moe.num_experts)
    check_values(call, moe.num_experts)
    with in_full_precision(call.hidden_TD.device):
        return _decided(moe, weights, call)


def _decided(moe: MoeSpec, weights: GateWeights, call: GateCall) -> Routing:
    stored_E = weights.get("selection_bias")
    if stored_E is not None:
        given_E = call.selection_bias_E
        call = replace(call, selection_bias_E=stored_E if given_E is None else stored_E + given_E)
    if call.forced_TK is not None:
        call = _unmasked(call)
    elif moe.twins is not None:
        call = with_one_of_twins(moe.twins, moe.gate, weights, call)
    routing = GATES[moe.gate.kind](moe.gate, weights, call)
    if not (call.training and isinstance(moe.gate, Base)):
        # While training BASE may deal a masked expert, to even its loads; it has no weight.
        routing = without_masked(routing, call, leaves_enough=call.leaves_enough and moe.twins is None)
    if call.selection_bias_E is not None:
        routing = replace(routing, selection_bias_E=call.selection_bias_E.detach())
    return (
        routing if moe.capacity is None else within_capacity(routing, moe.capacity, weights, call, moe.gate)
    )


def _unmasked(call: GateCall) -> GateCall:
    """The call without its masks: what is forced against one would have no weight, and all of it together no number."""
    if call.bias_TE is None:
        return call
    return replace(call, bias_TE=call.bias_TE.masked_fill(call.bias_TE == NEG_INF, 0.0))
