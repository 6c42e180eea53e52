"""The whole numbers of a native step: which tokens, where they stand, and which are sampled."""

from __future__ import annotations

from array import array
from itertools import accumulate

from moe_core.engine.block_pool import BLOCK_TOKENS, NULL_BLOCK
from moe_core.engine.scheduler import Chunk


class StepNumbers:
    """As `StepPlan` wants them: columns that lie one after the other."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.prior_rows: list[int] = []
        self.firsts = [0]
        self.lengths: list[int] = []
        self.sampled: list[int] = []
        # Blocks of the longest sequence.
        self.longest = 0
        self._blocks: list[list[int]] = []

    def add(self, chunk: Chunk, prior_row: int) -> None:
        """The tokens of one chunk, after those of all before it; guesses, and what they follow, each as a row of its own."""
        start, end, own = chunk.start, chunk.end, chunk.sequence.block_ids
        self.ids += chunk.token_ids
        self.positions += range(start, end)
        for block in range(start // BLOCK_TOKENS, -(-end // BLOCK_TOKENS)):
            # From a token's position to its slot.
            moved = (own[block] - block) * BLOCK_TOKENS
            first, last = max(start, block * BLOCK_TOKENS), min(end, (block + 1) * BLOCK_TOKENS)
            self.slots += range(first + moved, last + moved)
        self.prior_rows += [prior_row] * (end - start)
        self.longest = max(self.longest, len(own))
        num_tokens = len(self.ids)
        # A layer's keys are all written before any row attends: by itself each row is what it would be in a step of its own.
        for length in range(start + 1, end + 1) if chunk.drafts else (end,):
            self.firsts.append(num_tokens - end + length)
            self.lengths.append(length)
            self._blocks.append(own)
        if chunk.wants_sample:
            self.sampled += range(num_tokens - 1 - len(chunk.drafts), num_tokens)

    def columns(self) -> array[int]:
        """All of them, in the order of `StepPlan`."""
        numbers = array("q", self.ids)
        for column in (self.positions, self.slots, self.prior_rows, self.firsts, self.lengths):
            numbers.extend(column)
        for own in self._blocks:
            numbers.extend(own)
            numbers.extend([NULL_BLOCK] * (self.longest - len(own)))
        numbers.extend(self.sampled)
        return numbers

    def addresses(self, begin: int) -> list[int]:
        """Where each column of `columns` begins, when the first does there."""
        size = array("q").itemsize
        num_tokens, num_sequences = size * len(self.ids), size * len(self.lengths)
        ends = (num_tokens, num_tokens, num_tokens, num_tokens, num_sequences + size, num_sequences)
        return list(accumulate((begin, *ends, num_sequences * self.longest)))
