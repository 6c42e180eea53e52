"""From a gate's specification to its decision: one function for each kind, asked by the layer.

T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moe_core.errors import SpecError
from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.routing import Routing
from moe_core.routers.sigmoid_groups import sigmoid_groups
from moe_core.routers.softmax_topk import softmax_topk
from moe_core.spec import MoeSpec

# Values in, values out: no gate keeps anything between two calls.
GateFunction = Callable[[Any, GateWeights, GateCall], Routing]

GATES: dict[str, GateFunction] = {
    "softmax_topk": softmax_topk,
    "sigmoid_groups": sigmoid_groups,
}


def decide(moe: MoeSpec, weights: GateWeights, call: GateCall) -> Routing:
    """Where the tokens of one call go, by the gate of a mixture and its tensors.

    The balancing bias that is stored with the gate adds to that of the call. Raises SpecError for shapes that do not
    fit and for what a gate needs and was not given.
    """
    stored_E = weights.get("selection_bias")
    if stored_E is not None:
        given_E = call.selection_bias_E
        call = replace(call, selection_bias_E=stored_E if given_E is None else stored_E + given_E)
    kind = moe.gate.kind
    if kind not in GATES:
        raise SpecError(f"no gate of kind {kind!r}; there are: {', '.join(GATES)}")
    return GATES[kind](moe.gate, weights, call)
