"""A plug-in for transformers: its mixture-of-experts models run on our expert kernels and our dispatch.

    from moe_core.integrations.transformers import register
    register()
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="turnout")

With expert parallelism, `DistributedConfig(ep_size=…, ep_implementation="turnout")` brings tokens to experts as
`moe_core.integrations.expert_parallel` does.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, r rows of one expert.
Source: transformers 5.23, integrations/moe.py (`ALL_EXPERTS_FUNCTIONS`, what an experts module says of itself) and
distributed/expert_parallel.py (`EPImplementationInterface`, the ids of experts that are elsewhere).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from moe_core.errors import MissingLibrary
from moe_core.kernels import dispatch
from moe_core.kernels.torch_mapped import mapped_experts_torch
from moe_core.routers.routing import NO_EXPERT

NAME = "turnout"


def register() -> str:
    """Put experts and dispatch into transformers' own tables; returns the name to ask for them by.

    Raises MissingLibrary where transformers is missing or has no such tables. Doing it twice does no harm.
    """
    try:
        from transformers.integrations import moe
    except ImportError as error:
        raise MissingLibrary(
            f"the plug-in needs transformers 5.23 or later ({error}); install it with: pip install transformers"
        ) from error
    moe.ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    if torch.distributed.is_available():
        from transformers.distributed.expert_parallel import EPImplementationInterface

        from moe_core.integrations.expert_parallel import OncePerRankEP

        EPImplementationInterface.register(NAME, OncePerRankEP)
    return NAME


def experts_forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What transformers calls in the place of an experts module's own forward: (T, D) in the dtype of the input.

    `hidden_states` (T, D), `top_k_index` (T, K) int64 and `top_k_weights` (T, K), any floating dtype. An id of E or more
    stands for an expert on another rank, and is left out. Layers of plain SwiGLU go to the kernel that
    `moe_core.kernels.dispatch` chooses; other layouts, biases and activations run grouped in torch.
    """
    num_experts = _num_experts(experts)
    ids_TK = torch.where(top_k_index < num_experts, top_k_index, NO_EXPERT)
    if _is_plain_swiglu(experts):
        packed = (experts.gate_up_proj, experts.down_proj)
        # Under autocast, norms hand over float32 where the experts are narrower.
        x_TD = hidden_states.to(experts.down_proj.dtype)
        return dispatch.swiglu_experts(x_TD, *packed, ids_TK, top_k_weights).to(hidden_states.dtype)
    return mapped_experts_torch(
        hidden_states, ids_TK, top_k_weights, num_experts, lambda expert, x_rD: _one(experts, expert, x_rD)
    )


def _num_experts(experts: Any) -> int:
    """How many experts are here: under expert parallelism fewer than the model has."""
    return int(experts.down_proj.shape[0])


def _is_plain_swiglu(experts: Any) -> bool:
    """Gate rows first, then up rows, silu, and nothing else: the layout of `GroupedExperts`."""
    from transformers.integrations.moe import _default_apply_gate

    return (
        experts.has_gate
        and experts.is_concatenated
        and not (experts.is_transposed or experts.has_bias or experts.has_post_expert_norm)
        and type(experts)._apply_gate is _default_apply_gate
        and _is_silu(experts.act_fn)
        and experts.gate_up_proj.dtype == experts.down_proj.dtype
    )


def _is_silu(activation: Any) -> bool:
    # transformers has a class of its own for the same function.
    return activation is torch.nn.functional.silu or type(activation).__name__ in ("SiLU", "SiLUActivation")


def _one(experts: Any, expert: int, x_rD: Tensor) -> Tensor:
    """One expert as its module describes it."""
    inner_rF = _map(experts, "gate_up_proj" if experts.has_gate else "up_proj", expert, x_rD)
    act_rF = experts._apply_gate(inner_rF) if experts.has_gate else experts.act_fn(inner_rF)
    out_rD = _map(experts, "down_proj", expert, act_rF)
    return experts.post_expert_norm(out_rD) if experts.has_post_expert_norm else out_rD


def _map(experts: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return linear(x.to(weight.dtype), weight.t() if experts.is_transposed else weight, bias)
