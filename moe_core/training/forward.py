"""One pass over a batch of windows: losses of the language model, and what every router decided.

Shapes: B windows, S tokens a window, T = B·S tokens, P positions with a loss, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from moe_core.model.context import RoutingContext
from moe_core.model.layers import MoeMlp
from moe_core.operations.routing_figures import RoutingFigures
from moe_core.routers import Routing
from moe_core.training.data import Windows
from moe_core.training.losses import frozen_head_losses
from moe_core.training.tally import Tally
from moe_core.training.trunk import CutDecoder, FeedForward, TrunkCache


@dataclass(slots=True)
class Pass:
    """What one forward pass gave."""

    # (P,) float32 cross-entropy of each position with a loss.
    losses_P: Tensor
    # (P,) domain of each such position.
    domain_P: Tensor
    # (T,) domain of each token and whether it is a token of the logs.
    domain_T: Tensor
    real_T: Tensor
    # (T,) vocabulary entries.
    token_T: Tensor
    # (T,) int64: the window of each token.
    sequence_T: Tensor
    # Layer number → its decisions, with their gradients.
    routings: dict[int, Routing]

    def without_graph(self) -> Pass:
        """The same figures, holding on to no activations."""
        routings = {layer: routing.detached() for layer, routing in self.routings.items()}
        return replace(self, losses_P=self.losses_P.detach(), routings=routings)

    def note_into(self, figures: RoutingFigures) -> None:
        """Add the decisions to the figures of a run."""
        for layer, routing in self.routings.items():
            figures.add(layer, routing, self.real_T, self.token_T, self.domain_T)

    def count_into(self, tally: Tally) -> None:
        """Add everything to a tally."""
        for layer, routing in self.routings.items():
            tally.count_routing(layer, routing, self.real_T, self.domain_T)
        tally.count_tokens(self.real_T, self.domain_T)
        tally.count_losses(self.losses_P, self.domain_P)


@dataclass(slots=True)
class Share:
    """How much of a batch a lane has: its sums count by these, so that lanes add up to the whole batch's means."""

    num_tokens: int
    num_targets: int

    @classmethod
    def of(cls, windows: Windows, places: Sequence[int]) -> Share:
        """The tokens and the positions with a loss at these places."""
        batch = windows.take(places)
        return cls(max(1, int(batch.real_NS.sum())), max(1, int(batch.target_NS.sum())))


class Words(TypedDict):
    """What gates may see of the tokens of a batch besides their hidden states."""

    token_ids_T: Tensor
    sequence_T: Tensor
    real_T: Tensor


def _words(batch: Windows) -> Words:
    size, sequence = batch.ids_NS.shape
    every_N = torch.arange(size, device=batch.ids_NS.device)
    return Words(
        token_ids_T=batch.ids_NS.flatten(),
        sequence_T=every_N.repeat_interleave(sequence),
        real_T=batch.real_NS.flatten(),
    )


@torch.no_grad()
def router_inputs(cut: CutDecoder, cache: TrunkCache, places: Sequence[int]) -> dict[str, Tensor]:
    """What each router sees of the windows at `places`, padding left out: (T, D) float32 by the gate's name."""
    seen: dict[str, Tensor] = {}
    batch = cache.windows.take(places)
    real_T = batch.real_NS.flatten()
    context = RoutingContext(**_words(batch))

    def look(mlp: MoeMlp, normed_TD: Tensor) -> Tensor:
        seen[f"{mlp.layer}.router"] = normed_TD[real_T].float()
        out_TD: Tensor = mlp(normed_TD, context)
        return out_TD

    size, sequence = batch.ids_NS.shape
    cut.above(cache.hidden(places), size, sequence, look)
    return seen


def forward(
    cut: CutDecoder,
    cache: TrunkCache,
    places: Sequence[int],
    feed_forward: FeedForward | None = None,
    surroundings: RoutingContext | None = None,
) -> Pass:
    """Run the windows at `places` through the upper half; `feed_forward` replaces routers and experts.

    `surroundings` say how gates behave (by default as when serving); whom they are told of is added here.
    """
    batch = cache.windows.take(places)
    size, sequence = batch.ids_NS.shape
    routings: dict[int, Routing] = {}
    words = _words(batch)
    context = replace(surroundings or RoutingContext(), observe=routings.__setitem__, **words)
    routed = feed_forward or (lambda mlp, normed_TD: mlp(normed_TD, context))
    hidden_TD = cut.above(cache.hidden(places), size, sequence, routed)
    position_P = torch.nonzero(batch.target_NS.flatten()).flatten()
    # A position with a loss is never the last of its window, so the next place is in the same window.
    target_P = batch.ids_NS.flatten()[position_P + 1]
    domain_T = batch.domain_N.repeat_interleave(sequence)
    losses_P = frozen_head_losses(hidden_TD[position_P], cut.model.head_weight_VD, target_P)
    return Pass(
        losses_P,
        domain_T[position_P],
        domain_T,
        words["real_T"],
        batch.ids_NS.flatten(),
        words["sequence_T"],
        routings,
    )
