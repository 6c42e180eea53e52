"""Measure a mixture on held-out logs: the same windows of each domain, the router left free."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from moe_core.operations.routing_figures import RoutingFigures
from moe_core.spec import RoutingSpec
from moe_core.training.data import Windows, spread
from moe_core.training.forward import Pass, forward
from moe_core.training.lanes import Lanes
from moe_core.training.tally import Tally
from moe_core.training.trunk import CutDecoder, TrunkCache

BATCH_WINDOWS = 8


def held_out_places(windows: Windows, routing: RoutingSpec, per_domain: int) -> list[int]:
    """As many windows of each domain (and of none) as the smallest mapped domain has, at most `per_domain`.

    Equal shares make the load of the experts comparable: a domain with more logs does not look like a hot expert.
    """
    domains = [*range(len(routing.codes)), -1]
    sizes = [len(windows.of_domain(domain)) for domain in domains]
    limit = min([per_domain, *(size for size in sizes if size)])
    return [place for domain in domains for place in spread(windows.of_domain(domain), limit)]


def evaluate(
    lanes: Lanes,
    cut: CutDecoder,
    cache: TrunkCache,
    places: Sequence[int],
    routing: RoutingSpec,
    after_batch: Callable[[int, int, Tally], None] = lambda done, of, tally: None,
    figures: RoutingFigures | None = None,
) -> Tally:
    """Count and measure every window at `places`; `after_batch(done, of, tally so far)` is called in between.

    Every decision is noted in `figures` too, batch by batch.
    """
    tally = Tally.of(cut.model.spec, routing, cut.device)
    batches = [places[start : start + BATCH_WINDOWS] for start in range(0, len(places), BATCH_WINDOWS)]
    done = 0
    for start in range(0, len(batches), lanes.num_lanes):
        at_once = batches[start : start + lanes.num_lanes]
        for passed in lanes.each(lambda batch: _measured(cut, cache, batch), at_once):
            passed.count_into(tally)
            if figures is not None:
                passed.note_into(figures)
        done += sum(map(len, at_once))
        after_batch(done, len(places), tally)
    return tally


def _measured(cut: CutDecoder, cache: TrunkCache, places: Sequence[int]) -> Pass:
    # Gradient mode belongs to the thread.
    with torch.no_grad():
        return forward(cut, cache, places)
