"""The little that operations need of training: batches that hang on a seed, a schedule, the loss of a batch, its steps.

Of every weight (`train`), or of one expert of each layer with its gate row (`learn_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from moe_core.errors import NonFiniteLoss, SpecError
from moe_core.model.context import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.passes import next_token_losses
from moe_core.operations.prompts import Prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.routers.param_groups import clip_gradients, parameter_groups
from moe_core.sentences import CORE


class Pace(Protocol):
    """What the specifications of operations that learn one expert of each layer say of how they learn."""

    @property
    def steps(self) -> int:
        """How many steps there are."""

    @property
    def learning_rate(self) -> float:
        """The peak of the schedule."""

    @property
    def batch_prompts(self) -> int:
        """Prompts of a step, of each set of prompts."""

    @property
    def seed(self) -> int:
        """Where the order of the prompts starts."""


WARM_UP_SHARE = 0.1
FINAL_SHARE = 0.1


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a tenth of the peak."""
    warm_up = max(1, round(WARM_UP_SHARE * num_steps))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, num_steps - warm_up)
    return peak * (FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def dealt(prompts: Prompts, size: int, generator: torch.Generator) -> Iterator[Prompts | None]:
    """Batches without end, every prompt once before any comes again; None for ever when there are no prompts."""
    if not len(prompts):
        while True:
            yield None
    left: list[int] = []
    while True:
        while len(left) < size:
            left += torch.randperm(len(prompts), generator=generator).tolist()
        yield prompts.take(left[:size])
        del left[:size]


def mean_loss(model: Decoder, batch: Prompts) -> Tensor:
    """Mean next-token loss of a batch, with its graph."""
    batch.check_fits(model.spec)
    logits_NSV = model(batch.ids_NS, RoutingContext(real_T=batch.real_T)).float()
    losses_NS, counted_NS = next_token_losses(torch.log_softmax(logits_NSV, dim=-1), batch)
    return mean_counted(losses_NS, counted_NS)


def mean_counted(losses_NS: Tensor, counted_NS: Tensor) -> Tensor:
    """The mean of the losses that count; 0 for a batch of prompts of one token, which have no next one."""
    counted = losses_NS[counted_NS]
    return counted.mean() if counted.numel() else counted.sum()


def check_next_tokens(prompts: Prompts) -> None:
    """Raise SpecError where no token of any prompt has a next one that could be learnt."""
    if len(prompts) and not bool(prompts.real_NS[:, 1:].any()):
        raise SpecError.of("nothing_to_learn", count=len(prompts))


def train(
    model: Decoder,
    prompts: Prompts,
    loss_of: Callable[[Prompts], Tensor],
    *,
    steps: int,
    learning_rate: float,
    router_learning_rate: float | None = None,
    clip_norm: float = 1.0,
    router_clip_norm: float = 1.0,
    batch_prompts: int,
    seed: int,
    watch: Watch = unwatched,
) -> None:
    """AdamW on every weight of the model, in place; gates have a rate and a clip of their own. Raises NonFiniteLoss."""
    model.requires_grad_(True)
    rates = (learning_rate if router_learning_rate is None else router_learning_rate, learning_rate)
    groups = parameter_groups(model, learning_rate, rates[0])
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    batches = dealt(prompts, batch_prompts, torch.Generator().manual_seed(seed))
    for step, batch in zip(range(steps), batches, strict=False):
        assert batch is not None
        loss = loss_of(batch)
        _check_finite(loss, step, learning_rate)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(model, clip_norm, router_clip_norm)
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = learning_rate_at(step, steps, rate)
        adam.step()
        watch("learn", step + 1, steps)


def learn_rows(
    model: Decoder,
    experts_L: Sequence[int],
    loss_of: Callable[[Prompts, Prompts | None], Tensor],
    prompts: tuple[Prompts, Prompts],
    pace: Pace,
    watch: Watch = unwatched,
) -> None:
    """AdamW on one expert of each layer, its gate row and logit bias, in place; every other number stays bit for bit.

    `loss_of` gets a batch of each of the two sets of prompts, None where the second is empty. Raises NonFiniteLoss.
    """
    model.requires_grad_(False)
    learning = [
        (weight, expert)
        for layer, expert in zip(model.moe_layers(), experts_L, strict=True)
        for weight in _weights(layer)
    ]
    whole, rows = [weight for weight, _ in learning], [expert for _, expert in learning]
    for weight in whole:
        weight.requires_grad_(True)
    # Float32 copies of the clone's own entries: the only thing that an optimiser ever sees.
    masters = [weight.detach()[row].float().clone() for weight, row in zip(whole, rows, strict=True)]
    adam = torch.optim.AdamW(masters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(pace.seed)
    batches = zip(*(dealt(one, pace.batch_prompts, generator) for one in prompts), strict=False)
    for step, (batch, other) in zip(range(pace.steps), batches, strict=False):
        assert batch is not None
        loss = loss_of(batch, other)
        _check_finite(loss, step, pace.learning_rate)
        gradients = torch.autograd.grad(loss, whole, allow_unused=True)
        for master, gradient, row in zip(masters, gradients, rows, strict=True):
            master.grad = torch.zeros_like(master) if gradient is None else gradient[row].float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        adam.param_groups[0]["lr"] = learning_rate_at(step, pace.steps, pace.learning_rate)
        adam.step()
        with torch.no_grad():
            for weight, master, row in zip(whole, masters, rows, strict=True):
                weight[row] = master.to(weight.dtype)
        watch("learn", step + 1, pace.steps)
    model.requires_grad_(True)


def _weights(layer: MoeMlp) -> Iterator[Tensor]:
    yield from (tensor for _name, tensor in layer.experts.named_parameters())
    yield layer.router.weight
    if "bias" in layer.router.tensors:
        yield layer.router.tensors["bias"]


def _check_finite(loss: Tensor, step: int, learning_rate: float) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteLoss(
            CORE.say("learning_not_finite", loss=float(loss.detach()), step=step, learning_rate=learning_rate)
        )
