"""The little that operations need of training: batches that hang on a seed, a schedule, the loss of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from moe_core.errors import NonFiniteLoss, SpecError
from moe_core.model.decoder import Decoder
from moe_core.operations.measure import next_token_losses
from moe_core.operations.prompts import Prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.routers.param_groups import clip_gradients, parameter_groups

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
    losses_NS, counted_NS = next_token_losses(torch.log_softmax(model(batch.ids_NS).float(), dim=-1), batch)
    return mean_counted(losses_NS, counted_NS)


def mean_counted(losses_NS: Tensor, counted_NS: Tensor) -> Tensor:
    """The mean of the losses that count; 0 for a batch of prompts of one token, which have no next one."""
    counted = losses_NS[counted_NS]
    return counted.mean() if counted.numel() else counted.sum()


def check_next_tokens(prompts: Prompts) -> None:
    """Raise SpecError where no token of any prompt has a next one that could be learnt."""
    if len(prompts) and not bool(prompts.real_NS[:, 1:].any()):
        raise SpecError(
            f"each of the {len(prompts)} prompts has one token, and none has a next one to learn; "
            "give prompts of at least two tokens"
        )


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
        if not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss became {float(loss)} at step {step}; lower learning_rate ({learning_rate})"
            )
        adam.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(model, clip_norm, router_clip_norm)
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = learning_rate_at(step, steps, rate)
        adam.step()
        watch("learn", step + 1, steps)
