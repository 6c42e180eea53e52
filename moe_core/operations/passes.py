"""What an operation does to a model: loss per domain, divergence from the model before, load of the experts.

Shapes: N prompts, S tokens, T = N·S, V vocabulary, L expert layers, E experts, D model width,
C tokens of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.model.attention import DenseCausal
from moe_core.model.context import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.layers import MoeMlp
from moe_core.operations.prompts import Prompts
from moe_core.operations.watch import Watch, unwatched
from moe_core.routers import Routing

# Called with a layer and its (T, D) input; T counts padding too.
Listener = Callable[[MoeMlp, Tensor], None]
# Called with each batch of prompts: what its routers are told and whom they tell; None for nothing.
Observe = Callable[[Prompts], RoutingContext | None]
# Logits of so many tokens are held at once: a vocabulary of 50,000 in float32 is 200 kB for each.
HEAD_TOKENS = 256


def unobserved(batch: Prompts) -> None:
    """Nobody looks at the routing."""


def hidden_of(model: Decoder, batch: Prompts, context: RoutingContext | None = None) -> Tensor:
    """(T, D) hidden states after the final norm, padding included: all that routing needs, without any logits.

    Padding takes no place of an expert and enters no slot, so that the figures of a prompt do not hang on how long others
    are: a gate that sees the batch, and a capacity, would let it.
    Raises SpecError when a token is outside the model's vocabulary, or a prompt longer than its positions.
    """
    batch.check_fits(model.spec)
    num_prompts, length = batch.ids_NS.shape
    positions_T = torch.arange(length).repeat(num_prompts)
    context = replace(context or RoutingContext(), real_T=batch.real_T)
    return model.hidden(batch.ids_NS.reshape(-1), positions_T, DenseCausal(num_prompts, length), context)


def log_probs(model: Decoder, hidden_TD: Tensor) -> Tensor:
    """(T, V) float32 log probabilities of the next token."""
    return torch.log_softmax(model.logits(hidden_TD).float(), dim=-1)


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

    def add(self, figure_T: Tensor, domain_T: Tensor) -> None:
        """Add a figure of each token, (T,), with its domain, (T,) int64."""
        self._sum_N.index_add_(0, domain_T, figure_T.detach().double())
        self._count_N.index_add_(0, domain_T, torch.ones_like(domain_T, dtype=torch.float64))

    def by_domain(self) -> dict[str, float]:
        """The mean of each domain that has tokens."""
        return {
            code: float(self._sum_N[row] / self._count_N[row])
            for row, code in enumerate(self._codes)
            if self._count_N[row]
        }


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some real tokens of a batch: their places in it, their domains, and the token that follows each, -1 for none."""

    at_C: Tensor
    domain_C: Tensor
    next_C: Tensor

    def losses(self, log_probs_CV: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the next token where there is one, and the domains of those."""
        has_C = self.next_C >= 0
        return -log_probs_CV[has_C].gather(-1, self.next_C[has_C, None])[:, 0], self.domain_C[has_C]


def stretches(batch: Prompts) -> Iterator[Stretch]:
    """The real tokens of a batch, so many at a time as may have logits at once."""
    next_NS = torch.full_like(batch.ids_NS, -1)
    next_NS[:, :-1] = torch.where(batch.real_NS[:, 1:], batch.ids_NS[:, 1:], -1)
    at_T = torch.nonzero(batch.real_T).flatten()
    for at_C in at_T.split(HEAD_TOKENS):
        yield Stretch(at_C, batch.domain_T[at_C], next_NS.flatten()[at_C])


@torch.no_grad()
def loss_by_domain(
    model: Decoder, prompts: Prompts, watch: Watch = unwatched, observe: Observe = unobserved
) -> dict[str, float]:
    """Mean next-token loss in nats of each domain."""
    means, done = DomainMeans(prompts.codes), 0
    for batch in prompts.batches():
        hidden_TD = hidden_of(model, batch, observe(batch))
        for part in stretches(batch):
            means.add(*part.losses(log_probs(model, hidden_TD[part.at_C])))
        done += len(batch)
        watch("measure", done, len(prompts))
    return means.by_domain()


def loss_change(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Losses before and after with their difference, for a report."""
    change = {code: after[code] - before[code] for code in before}
    return {"loss_before": before, "loss_after": after, "loss_change": change}


@torch.no_grad()
def compare(
    before: Decoder,
    after: Decoder,
    prompts: Prompts,
    watch: Watch = unwatched,
    observe: tuple[Observe, Observe] = (unobserved, unobserved),
) -> dict[str, Any]:
    """Loss per domain of both, KL(before ‖ after) in nats, and how often their best next token is the same."""
    losses, others, divergences, same = (DomainMeans(prompts.codes) for _ in range(4))
    done = 0
    for batch in prompts.batches():
        ours_TD = hidden_of(before, batch, observe[0](batch))
        theirs_TD = hidden_of(after, batch, observe[1](batch))
        for part in stretches(batch):
            ours_CV, theirs_CV = log_probs(before, ours_TD[part.at_C]), log_probs(after, theirs_TD[part.at_C])
            losses.add(*part.losses(ours_CV))
            others.add(*part.losses(theirs_CV))
            divergences.add((ours_CV.exp() * (ours_CV - theirs_CV)).sum(-1), part.domain_C)
            same.add(_same_best(ours_CV, theirs_CV), part.domain_C)
        done += len(batch)
        watch("measure", done, len(prompts))
    return {
        **loss_change(losses.by_domain(), others.by_domain()),
        "kl": divergences.by_domain(),
        "same_best_token": same.by_domain(),
    }


def _same_best(ours_CV: Tensor, theirs_CV: Tensor) -> Tensor:
    """(C,) 1 where both say the same next, 0 where not, NaN where one says nothing: of all NaN, too, one place is first."""
    says_C = torch.isfinite(ours_CV.amax(-1)) & torch.isfinite(theirs_CV.amax(-1))
    return (ours_CV.argmax(-1) == theirs_CV.argmax(-1)).float().masked_fill(~says_C, torch.nan)


@torch.no_grad()
def loads(model: Decoder, prompts: Prompts, watch: Watch = unwatched) -> Tensor:
    """(L, E) int64: how many choices of real tokens each expert gets."""
    moe = model.spec.moe
    assert moe is not None
    load_LE = torch.zeros(len(moe.moe_layers), moe.num_experts, dtype=torch.long)
    done = 0
    for batch in prompts.batches():

        def count(layer: int, routing: Routing, real_T: Tensor = batch.real_T) -> None:
            ids = routing.expert_ids_TK[real_T].flatten()
            load_LE[moe.moe_layers.index(layer)] += torch.bincount(ids[ids >= 0], minlength=moe.num_experts)

        hidden_of(model, batch, RoutingContext(observe=count))
        done += len(batch)
        watch("load", done, len(prompts))
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
