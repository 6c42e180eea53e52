"""Which waiting sequence shares its experts with those that run, so that fewer weights are read in a step.

What a sequence will route to is predicted from its tokens and its domain (`routing_profiles`): p is the chance that one of
its tokens visits an expert. Beside the running sequences R a candidate adds, in expectation, the sum over layers and
experts of p · Π_R (1 - p_r) experts to those that a step reads; the candidate that adds the least is taken.

Shapes: W waiting, R running, C topics, M = expert layers · experts.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from typing import TYPE_CHECKING

import numpy as np

from moe_core.engine.routing_profiles import Floats, RoutingProfiles
from moe_core.engine.sequence import Sequence

if TYPE_CHECKING:
    from moe_core.engine.routing_counts import RoutingCounts

# How many of the first in the queue are compared.
WINDOW = 16
# A candidate overtakes for a saving of so much at least: less is noise in the prediction.
LEAST_SAVING = 0.05
# Of a request of fewer counted tokens nothing is learnt.
LEAST_TOKENS = 8


class ExpertAffinity:
    """Choices by what the requests that ended in this engine have taught.

    `max_delay_steps`: who has been overtaken is overtaken by nobody any more after so many steps.
    """

    def __init__(self, counts: RoutingCounts, *, max_delay_steps: int, max_sequences: int) -> None:
        self.max_delay_steps = max_delay_steps
        self._counts = counts
        counts.keep_sequences_apart(max_sequences)
        self._profiles = self._new_profiles()
        # By sequence: its topics, and how many requests had been learnt from then.
        self._topics: dict[int, tuple[Floats, int]] = {}

    def forget(self) -> None:
        """Begin at nothing: the golden prompt is nobody's traffic."""
        self._profiles = self._new_profiles()
        self._topics.clear()

    def learn(self, sequence: Sequence) -> None:
        """Note where the tokens of a sequence that has ended went."""
        self._topics.pop(sequence.id, None)
        counted = self._counts.take_sequence(sequence.id)
        if counted is None or counted[0] < LEAST_TOKENS:
            return
        num_tokens, visits_LE = counted
        profile_M = (visits_LE / num_tokens).astype(np.float32).reshape(-1)
        self._profiles.learn(sequence.token_ids, sequence.domain, profile_M)

    def choose(self, waiting: Sequences[Sequence], running: Sequences[Sequence], now_step: int) -> int:
        """The place in `waiting`, fairest first and not empty, of the sequence to take at step `now_step`."""
        if waiting[0].num_preemptions:
            return 0
        places = in_turn(waiting)
        for place in places:
            overtaken_at = waiting[place].overtaken_at_step
            if overtaken_at is not None and now_step - overtaken_at >= self.max_delay_steps:
                return place
        if not running or len(places) == 1 or not self._profiles.num_learnt:
            return 0
        return places[self._least_addition([waiting[place] for place in places], running)]

    def _least_addition(self, waiting: Sequences[Sequence], running: Sequences[Sequence]) -> int:
        unread_M = np.prod(1.0 - self._visits(running), axis=0)
        added_W = self._visits(waiting) @ unread_M
        best = int(added_W.argmin())
        return best if added_W[best] < (1.0 - LEAST_SAVING) * added_W[0] else 0

    def _visits(self, sequences: Sequences[Sequence]) -> Floats:
        """(S, M): the chance that a token of each sequence visits each expert."""
        return self._profiles.visits_of(np.stack([self._topics_of(one) for one in sequences]))

    def _topics_of(self, sequence: Sequence) -> Floats:
        """As its prompt says; once more when twice as much has been learnt as was known the last time."""
        known = self._topics.get(sequence.id)
        if known is None or self._profiles.num_learnt >= 2 * known[1]:
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            topics_C = self._profiles.topics_of(prompt, sequence.domain)
            known = self._topics[sequence.id] = topics_C, self._profiles.num_learnt
        return known[0]

    def _new_profiles(self) -> RoutingProfiles:
        _, num_rows, num_layers, num_experts = self._counts.shape_PNLE
        return RoutingProfiles(num_layers * num_experts, num_rows - 1)


def in_turn(waiting: Sequences[Sequence]) -> list[int]:
    """The places of those that no request of their own key comes before by its priority."""
    least: dict[str, int] = {}
    return [
        place
        for place, one in enumerate(waiting)
        if one.priority <= least.setdefault(one.fair_key, one.priority)
    ]
