"""Which waiting sequence shares its experts with those that run, so that fewer weights are read in a step.

What a sequence will route to is predicted from what its domain has routed to so far: p is the chance that one of its
tokens visits an expert. Beside the running sequences R a candidate adds, in expectation, the sum over layers and experts
of p · Π_R (1 - p_r) experts to those that a step reads; the candidate that adds the least is taken.

Shapes: N domains (row 0: none), L expert layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_core.engine.sequence import Sequence

if TYPE_CHECKING:
    from moe_core.engine.routing_counts import RoutingCounts

# How many of the first in the queue are compared.
WINDOW = 16
# Tokens' worth of all domains' routing that a domain with few tokens is given, and the choices between two looks.
PRIOR_TOKENS, REFRESH_EVERY = 16.0, 16
# A candidate overtakes for a saving of so much at least: less is noise in the prediction.
LEAST_SAVING = 0.05


class ExpertAffinity:
    """Predictions from the counts of an engine that runs.

    `max_delay_steps`: who has been overtaken is overtaken by nobody any more after so many steps.
    """

    def __init__(self, counts: RoutingCounts, *, max_delay_steps: int) -> None:
        self.max_delay_steps = max_delay_steps
        self._counts = counts
        self._num_choices = 0
        self._visits_NM: NDArray[np.float64] | None = None

    def choose(self, waiting: Sequences[Sequence], running: Sequences[Sequence], now_step: int) -> int:
        """The place in `waiting`, fairest first and not empty, of the sequence to take at step `now_step`."""
        for place, sequence in enumerate(waiting):
            overtaken_at = sequence.overtaken_at_step
            if overtaken_at is not None and now_step - overtaken_at >= self.max_delay_steps:
                return place
        domains = [sequence.domain for sequence in waiting]
        if waiting[0].num_preemptions or not running or domains.count(domains[0]) == len(domains):
            return 0
        return self._least_addition(domains, [sequence.domain for sequence in running])

    def _least_addition(self, domains: list[int], running: list[int]) -> int:
        visits_NM = self._visits()
        unread_M = np.ones(visits_NM.shape[1])
        for domain in set(running):
            unread_M *= (1.0 - visits_NM[domain + 1]) ** running.count(domain)
        added = {domain: float(visits_NM[domain + 1] @ unread_M) for domain in set(domains)}
        best = min(domains, key=added.__getitem__)
        saves = added[best] < (1.0 - LEAST_SAVING) * added[domains[0]]
        return domains.index(best) if saves else 0

    def _visits(self) -> NDArray[np.float64]:
        """The chance that a token of each domain visits each expert of each layer: (N, L · E)."""
        if self._visits_NM is None or self._num_choices % REFRESH_EVERY == 0:
            counts_NLE = self._counts.counts_PNLE.sum(0).cpu().numpy().astype(np.float64)
            all_LE = counts_NLE.sum(0)
            # A layer's counts over experts are its tokens times the experts of a token.
            tokens_NL1 = counts_NLE.sum(-1, keepdims=True) / self._counts.top_k
            share_LE = all_LE / np.maximum(all_LE.sum(-1, keepdims=True) / self._counts.top_k, 1.0)
            visits_NLE = (counts_NLE + PRIOR_TOKENS * share_LE) / (tokens_NL1 + PRIOR_TOKENS)
            self._visits_NM = np.minimum(visits_NLE, 1.0).reshape(visits_NLE.shape[0], -1)
        self._num_choices += 1
        return self._visits_NM
