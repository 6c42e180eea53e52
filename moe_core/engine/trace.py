"""Routing X-ray: one prompt through the model by itself, with every expert layer's choice for every token.

Shapes: T tokens, L expert layers, E experts, K top_k.
"""

from __future__ import annotations

from typing import Any

import torch

from moe_core.engine.engine import Engine
from moe_core.errors import PromptTooLong
from moe_core.model.attention import DenseCausal
from moe_core.model.context import RoutingContext
from moe_core.routers import Routing

# The whole prompt runs in one step and holds up the others meanwhile.
MAX_TRACE_TOKENS = 512


@torch.inference_mode()
def trace(engine: Engine, prompt_ids: list[int], domain: int) -> list[dict[str, Any]]:
    """For each expert layer: top-k ids and weights (T, K), router logits (T, E) and the prior's part in them (E).

    Nothing is counted in the statistics and nothing is kept in the cache. A dense model has no layers to show.
    """
    engine.check_prompt(prompt_ids)
    if len(prompt_ids) > MAX_TRACE_TOKENS:
        raise PromptTooLong(
            f"the prompt has {len(prompt_ids)} tokens; a trace takes at most {MAX_TRACE_TOKENS}"
        )
    runner = engine.runner
    layers: list[dict[str, Any]] = []
    num_tokens = len(prompt_ids)

    def observe(layer: int, routing: Routing) -> None:
        layers.append(
            {
                "layer": layer,
                "ids": routing.expert_ids_TK.tolist(),
                "weights": _rounded(routing.weights_TK, 4),
                "logits": _rounded(routing.logits_TE, 3),
                "prior": []
                if runner.prior is None
                else _rounded(runner.prior.table_NLE[domain, len(layers)], 3),
            }
        )

    context = RoutingContext(
        torch.full((num_tokens,), domain, device=runner.device), runner.prior, runner.observer(observe)
    )
    runner.model.hidden(
        torch.tensor(prompt_ids, device=runner.device),
        torch.arange(num_tokens, device=runner.device),
        DenseCausal(1, num_tokens),
        context,
    )
    return layers


def _rounded(values: torch.Tensor, digits: int) -> Any:
    """Plain numbers; a masked expert's -inf becomes null, which JSON can say."""
    rounded = torch.round(values.double(), decimals=digits).tolist()
    return _without_infinities(rounded)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return value if value not in (float("-inf"), float("inf")) else None
