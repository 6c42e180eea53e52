"""Guesses what an answer says next from where its last tokens stood before, so that one step may compute several.

A guess is computed like an answer's tokens and kept as far as the model would have said the same; so an answer is the one
without guessing. It pays where answers repeat what prompt or answer hold (code, extraction, summaries): a step of several
tokens reads most weights once. How many are guessed is what gives the most tokens a second by two estimates: how often
what an answer says after as long a repetition was what had followed before, and what a step of so many tokens takes on this
machine (`step_costs.py`). The first is learnt of each token of an answer, guessed or not: so who repeats no more, or begins
to, is found out without a price. Text that never repeats costs next to nothing.

Source: Saxena 2023, "Prompt Lookup Decoding"; lengths by expected gain as in Leviathan et al. 2023, "Fast Inference from
Transformers via Speculative Decoding".
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from moe_core.engine.sequence import Sequence
from moe_core.engine.step_costs import StepCosts

# So many tokens must have stood together before; repetitions of more than LONGEST are not told apart.
NGRAM, LONGEST = 3, 8
# Of so many newest places the one with the longest repetition is taken.
MAX_PLACES = 4
# How often the next token is as it was, after repetitions of 3 to 8 tokens, before an answer has told otherwise; that is as
# much as so many of its tokens. Less than what answers show on average (0.55 to 0.65 after 3, 0.95 after 8): an answer that
# goes in circles soon tells, and one that does not must not pay for what others do.
FIRST_SHARES, FIRST_COUNT = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85), 4.0
MAX_TOKENS = 15


@dataclass(slots=True)
class _History:
    """Where each n-gram of one sequence was last followed by something, and how often it was followed by the same again."""

    # Before it stands the prompt, which says nothing of how the model goes on.
    answer_start: int
    next_of: dict[tuple[int, ...], int] = field(default_factory=dict)
    # Of each place the one before it with the same n-gram; 0: none.
    before: list[int] = field(default_factory=lambda: [0] * NGRAM)
    # By the length of the repetition: tokens of the answer that were as before, and all.
    right: list[float] = field(default_factory=lambda: [FIRST_COUNT * share for share in FIRST_SHARES])
    told: list[float] = field(default_factory=lambda: [FIRST_COUNT] * len(FIRST_SHARES))
    # Of what was found last.
    repeated: int = 0

    def read(self, ids: list[int]) -> None:
        """Learn of the answer's new tokens, and note the n-grams that have something behind them by now: the newest one has
        nothing yet."""
        for place in range(len(self.before), len(ids)):
            if place >= self.answer_start:
                self._learn(ids, place)
            ngram = tuple(ids[place - NGRAM : place])
            self.before.append(self.next_of.get(ngram, 0))
            self.next_of[ngram] = place

    def find(self, ids: list[int], end: int) -> int:
        """Where what followed the longest repetition of the last tokens before `end` begins; 0: nowhere."""
        place, found, self.repeated = self.next_of.get(tuple(ids[end - NGRAM : end]), 0), 0, 0
        for _ in range(MAX_PLACES):
            if not place or self.repeated == LONGEST:
                break
            length = NGRAM
            while length < min(LONGEST, place) and ids[place - length - 1] == ids[end - length - 1]:
                length += 1
            if length > self.repeated:
                found, self.repeated = place, length
            place = self.before[place]
        return found

    def share(self, further: int) -> float:
        """How often the next token is as it was when the repetition has grown by so many."""
        at = min(LONGEST, self.repeated + further) - NGRAM
        return self.right[at] / self.told[at]

    def _learn(self, ids: list[int], place: int) -> None:
        if found := self.find(ids, place):
            self.told[self.repeated - NGRAM] += 1.0
            self.right[self.repeated - NGRAM] += ids[found] == ids[place]


class NgramDrafter:
    """Guesses for all sequences of an engine, at most `num_tokens` of each at a time; none has more than `max_length`."""

    def __init__(
        self, num_tokens: int, max_length: int = sys.maxsize, costs: StepCosts | None = None
    ) -> None:
        self.num_tokens, self.max_length = num_tokens, max_length
        self.costs = costs or StepCosts()
        self._histories: dict[int, _History] = {}
        # Of the step that is being planned: tokens to compute, and tokens that may be said.
        self._num_rows, self._expected = 1, 1.0

    @classmethod
    def chosen(
        cls, num_tokens: int | None, *, changes_nothing: bool, max_length: int, costs: StepCosts
    ) -> NgramDrafter | None:
        """One that guesses up to `num_tokens`, or None for 0; where no number is named only if that changes nothing."""
        if num_tokens is None:
            num_tokens = MAX_TOKENS if changes_nothing else 0
        return cls(num_tokens, max_length, costs) if num_tokens else None

    def begin(self, num_running: int) -> None:
        """Plan a step in which so many sequences have a token each."""
        self._num_rows, self._expected = num_running, float(num_running)

    def propose(self, sequence: Sequence, most: int) -> tuple[int, ...]:
        """As many of up to `most` tokens that may come next as pay; none where scores are edited by what was said."""
        if most <= 0 or not _may_be_guessed(sequence):
            return ()
        history, ids = self._history_of(sequence), sequence.token_ids
        history.read(ids)
        place = history.find(ids, len(ids))
        if not place:
            return ()
        # The last token of an answer is not computed, so no guess stands in its place.
        left = min(sequence.sampling.max_tokens - sequence.num_output_tokens, self.max_length - len(ids)) - 1
        number = self._worth(history, min(self.num_tokens, most, left))
        # What follows may be the answer's own end: then it goes in circles.
        period = len(ids) - place
        return tuple(ids[place + further % period] for further in range(number))

    def forget(self, sequence: Sequence) -> None:
        """Drop what is known of a sequence that has ended."""
        self._histories.pop(sequence.id, None)

    def _history_of(self, sequence: Sequence) -> _History:
        history = self._histories.get(sequence.id)
        if history is None:
            history = self._histories[sequence.id] = _History(sequence.num_prompt_tokens)
        return history

    def _worth(self, history: _History, most: int) -> int:
        """How many guesses give the most tokens a second; they are then part of the step."""
        rows, expected, costs = self._num_rows, self._expected, self.costs
        best, number, gained, reach = expected / costs.of(rows), 0, 0.0, 1.0
        for further in range(most):
            reach *= history.share(further)
            gained += reach
            rate = (expected + gained) / costs.of(rows + further + 1)
            if rate > best:
                best, number, self._expected = rate, further + 1, expected + gained
        self._num_rows += number
        return number


def _may_be_guessed(sequence: Sequence) -> bool:
    """Whether its next token but one is known from logits alone, and no record is kept of each token's experts."""
    return sequence.score_edits is None and sequence.routed_experts is None
