"""Gates learn apart from the rest: a learning rate of their own, and a clip of their own before everybody's.

A gate's burst of gradient (one expert takes over) would otherwise shrink the step of the whole model, and the other way
round. What teaches whole models (distil, encoder–decoders) does so by these functions. Operations that teach one expert and
its gate row (specialise_clone, wake_expert) move them as one group, at one rate and clipped by one norm. Tuning jobs, which
move gates alone, do by other means: `moe_core.training.optimiser` clips each gate by its own norm (`route_clip_norm`),
`route_learning_rate` is the gates' rate, and a `weight_decay` that is asked for pulls at their maps too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# A part of the name of every gate's parameters.
ROUTER = ".router."


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that learn: (those of gates, all others)."""
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gates = [parameter for name, parameter in learning if ROUTER in f".{name}"]
    return gates, [parameter for name, parameter in learning if ROUTER not in f".{name}"]


def parameter_groups(
    model: nn.Module, learning_rate: float, router_learning_rate: float
) -> list[dict[str, Any]]:
    """Two groups for any torch optimiser; gates have no weight decay, which would pull all experts together."""
    gates, others = split_parameters(model)
    return [
        {"params": gates, "lr": router_learning_rate, "weight_decay": 0.0},
        {"params": others, "lr": learning_rate},
    ]


def clip_gradients(model: nn.Module, max_norm: float, router_max_norm: float) -> tuple[Tensor, Tensor]:
    """Clip the gates by their own norm, then everything by the norm of all; both norms before clipping.

    Norms are those of (gates, the whole model after the gates were clipped).
    """
    gates, others = split_parameters(model)
    gate_norm = torch.nn.utils.clip_grad_norm_(gates, router_max_norm)
    return gate_norm, torch.nn.utils.clip_grad_norm_([*gates, *others], max_norm)
