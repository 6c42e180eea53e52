"""Guesses what a greedy answer says next from where its last tokens stood before, so that one step may compute several.

A guess is computed like a bite of a prompt and kept as far as the model would have said the same; so an answer is the
one without guessing. It pays where answers repeat what prompt or answer hold (code, extraction, summaries) and few
sequences run: a step of several tokens reads a dense model's weights once. Wrong guesses make a sequence's next ones
rarer, so that text which never repeats costs next to nothing.

Source: Saxena 2023, "Prompt Lookup Decoding".
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from moe_core.engine.sampler import MIN_TEMPERATURE
from moe_core.engine.sequence import Sequence

# So many tokens must have stood together before.
NGRAM = 3
# With more sequences in a step its weights are read for many tokens anyway.
MAX_RUNNING = 4
MAX_PAUSE_STEPS = 64


@dataclass(slots=True)
class _History:
    """Where each n-gram of one sequence was last followed by something, and how its guesses fared."""

    next_of: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_noted: int = 0
    pause_steps: int = 0
    wait_steps: int = 0


class NgramDrafter:
    """Guesses for all sequences of an engine, at most `num_tokens` at a time."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._histories: dict[int, _History] = {}

    def propose(self, sequence: Sequence, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come next; none where sampling is not plainly greedy."""
        if most <= 0 or not _is_plainly_greedy(sequence):
            return ()
        history = self._histories.setdefault(sequence.id, _History())
        ids = sequence.token_ids
        # The newest n-gram has nothing behind it yet.
        for end in range(max(NGRAM, history.num_noted), len(ids)):
            history.next_of[tuple(ids[end - NGRAM : end])] = end
        history.num_noted = len(ids)
        if history.wait_steps > 0:
            history.wait_steps -= 1
            return ()
        place = history.next_of.get(tuple(ids[-NGRAM:]))
        left = sequence.sampling.max_tokens - sequence.num_output_tokens - 1
        return () if place is None else tuple(ids[place : place + min(self.num_tokens, most, left)])

    def note(self, sequence: Sequence, num_kept: int) -> None:
        """Learn how many tokens of a guess were right."""
        history = self._histories[sequence.id]
        history.pause_steps = 0 if num_kept else min(MAX_PAUSE_STEPS, 2 * history.pause_steps + 1)
        history.wait_steps = history.pause_steps

    def forget(self, sequence: Sequence) -> None:
        """Drop what is known of a sequence that has ended."""
        self._histories.pop(sequence.id, None)


def num_right(drafts: Tokens[int], said: Tokens[int | None]) -> int:
    """How many of the first `drafts` are what the model said in their places."""
    right = 0
    while right < len(drafts) and drafts[right] == said[right]:
        right += 1
    return right


def _is_plainly_greedy(sequence: Sequence) -> bool:
    sampling = sequence.sampling
    return (
        sampling.temperature < MIN_TEMPERATURE
        and sampling.num_logprobs is None
        and sequence.score_edits is None
        and sequence.routed_experts is None
    )
