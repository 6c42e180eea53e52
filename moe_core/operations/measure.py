"""What an operation does to a model: loss per domain, divergence from the model before, load of the experts.

Shapes: N prompts, S tokens, T = N·S, V vocabulary, L expert layers, E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.model.context import DomainPrior, RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.prompts import Prompts
from moe_core.routers import Routing

# Called with a layer and its (T, D) input; T counts padding too.
Listener = Callable[[MoeMlp, Tensor], None]


def log_probs(model: Decoder, batch: Prompts, prior: DomainPrior | None = None) -> Tensor:
    """(N, S, V) float32 log probabilities of the next token; a prior is that of its first domain, for all."""
    context = None
    if prior is not None:
        context = RoutingContext(domain_T=torch.zeros(batch.ids_NS.numel(), dtype=torch.long), prior=prior)
    return torch.log_softmax(model(batch.ids_NS, context).float(), dim=-1)


def next_token_losses(log_probs_NSV: Tensor, batch: Prompts) -> tuple[Tensor, Tensor]:
    """(N, S-1) cross-entropy of each next token and whether there is one."""
    target_NS = batch.ids_NS[:, 1:]
    losses_NS = -log_probs_NSV[:, :-1].gather(-1, target_NS[..., None])[..., 0]
    return losses_NS, batch.real_NS[:, 1:]


class DomainMeans:
    """Means of figures over the tokens of each domain."""

    def __init__(self, codes: tuple[str, ...]) -> None:
        self._codes = codes
        self._sum_N = torch.zeros(len(codes), dtype=torch.float64)
        self._count_N = torch.zeros(len(codes), dtype=torch.float64)

    def add(self, figure_NS: Tensor, counted_NS: Tensor, domain_N: Tensor) -> None:
        """Add a figure of each token; those that are not counted may hold anything."""
        rows_T = domain_N[:, None].expand_as(counted_NS)[counted_NS]
        self._sum_N.index_add_(0, rows_T, figure_NS[counted_NS].detach().double())
        self._count_N.index_add_(0, rows_T, torch.ones_like(rows_T, dtype=torch.float64))

    def by_domain(self) -> dict[str, float]:
        """The mean of each domain that has tokens."""
        return {
            code: float(self._sum_N[row] / self._count_N[row])
            for row, code in enumerate(self._codes)
            if self._count_N[row]
        }


@torch.no_grad()
def loss_by_domain(model: Decoder, prompts: Prompts, prior: DomainPrior | None = None) -> dict[str, float]:
    """Mean next-token loss in nats of each domain."""
    means = DomainMeans(prompts.codes)
    for batch in prompts.batches():
        means.add(*next_token_losses(log_probs(model, batch, prior), batch), batch.domain_N)
    return means.by_domain()


def loss_change(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Losses before and after with their difference, for a report."""
    change = {code: after[code] - before[code] for code in before}
    return {"loss_before": before, "loss_after": after, "loss_change": change}


@torch.no_grad()
def compare(
    before: Decoder, after: Decoder, prompts: Prompts, prior: DomainPrior | None = None
) -> dict[str, Any]:
    """Loss per domain of both, KL(before ‖ after) in nats, and how often their best next token is the same.

    `prior` is applied to `after` only.
    """
    losses, others, divergences, same = (DomainMeans(prompts.codes) for _ in range(4))
    for batch in prompts.batches():
        ours_NSV, theirs_NSV = log_probs(before, batch), log_probs(after, batch, prior)
        losses.add(*next_token_losses(ours_NSV, batch), batch.domain_N)
        others.add(*next_token_losses(theirs_NSV, batch), batch.domain_N)
        kl_NS = (ours_NSV.exp() * (ours_NSV - theirs_NSV)).sum(-1)
        divergences.add(kl_NS, batch.real_NS, batch.domain_N)
        agree_NS = (ours_NSV.argmax(-1) == theirs_NSV.argmax(-1)).float()
        same.add(agree_NS, batch.real_NS, batch.domain_N)
    return {
        **loss_change(losses.by_domain(), others.by_domain()),
        "kl": divergences.by_domain(),
        "same_best_token": same.by_domain(),
    }


@torch.no_grad()
def loads(model: Decoder, prompts: Prompts) -> Tensor:
    """(L, E) int64: how many choices of real tokens each expert gets."""
    moe = model.spec.moe
    assert moe is not None
    load_LE = torch.zeros(len(moe.moe_layers), moe.num_experts, dtype=torch.long)
    for batch in prompts.batches():

        def count(layer: int, routing: Routing, real_T: Tensor = batch.real_T) -> None:
            ids = routing.expert_ids_TK[real_T].flatten()
            load_LE[moe.moe_layers.index(layer)] += torch.bincount(ids[ids >= 0], minlength=moe.num_experts)

        model(batch.ids_NS, RoutingContext(observe=count))
    return load_LE


@contextmanager
def listening(model: Decoder, listener: Listener) -> Iterator[None]:
    """While open, `listener` is called with the router's true input, after the norm, before each expert layer runs."""

    def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, MoeMlp)
        listener(layer, args[0])

    hooks = [layer.register_forward_pre_hook(before) for layer in model.moe_layers()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mask_of(model: Decoder, removed_L: list[int]) -> DomainPrior:
    """A prior that hides one expert of each expert layer from every token."""
    moe = model.spec.moe
    assert moe is not None
    bias_1LE = torch.zeros(1, len(moe.moe_layers), moe.num_experts)
    for row, expert in enumerate(removed_L):
        bias_1LE[0, row, expert] = float("-inf")
    return DomainPrior(bias_1LE, moe.top_k)
