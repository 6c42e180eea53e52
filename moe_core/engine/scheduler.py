"""Which tokens the next step computes: decodes first, then prompt chunks, within one token budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from moe_core.engine.affinity import WINDOW, ExpertAffinity
from moe_core.engine.block_pool import BLOCK_TOKENS, BlockPool
from moe_core.engine.fair_queue import OUTPUT_WEIGHT, FairQueue
from moe_core.engine.ngram import NgramDrafter
from moe_core.engine.overtaking import choose_shorter, note_overtaken, note_passed
from moe_core.engine.reuse import reusable_blocks
from moe_core.engine.sequence import Sequence, SequenceState, num_blocks_for
from moe_core.errors import EngineBusy, placed

# Of a prompt beside decodes when few tokens of prompts wait; above it, one for so many that wait.
CALM_CHUNK_TOKENS, PENDING_PER_TOKEN = 64, 2


# Not frozen, for a step makes one for each sequence: assignments of frozen classes take three times as long.
@dataclass(slots=True)
class Chunk:
    """The tokens [start, end) of one sequence, computed in one step; the last of them may be guesses."""

    sequence: Sequence
    start: int
    end: int
    drafts: tuple[int, ...] = ()
    # Guesses that were computed after `end` and are not what the model says.
    num_rejected: int = 0

    @property
    def num_tokens(self) -> int:
        """How many tokens the chunk has."""
        return self.end - self.start

    @property
    def token_ids(self) -> list[int]:
        """The tokens."""
        return [*self.sequence.token_ids[self.start : self.end - len(self.drafts)], *self.drafts]

    @property
    def wants_sample(self) -> bool:
        """Whether the chunk has the sequence's last token, so that the next one can be sampled."""
        return self.end >= len(self.sequence.token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether it is an answer's last token alone, with the guesses that follow it."""
        return self.wants_sample and self.num_tokens == 1 + len(self.drafts)

    def settled(self, num_kept: int) -> Chunk:
        """The same when `num_kept` of its guesses were right."""
        num_rejected = len(self.drafts) - num_kept
        return Chunk(self.sequence, self.start, self.end - num_rejected, num_rejected=num_rejected)


class Scheduler:
    """The waiting and the running sequences, and the blocks they hold."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_chunk_tokens: int,
        max_sequences: int,
        max_waiting: int,
        fixed_chunk_tokens: int = 0,
        affinity: ExpertAffinity | None = None,
        drafter: NgramDrafter | None = None,
    ) -> None:
        self.pool = pool
        self.affinity = affinity
        self.drafter = drafter
        self.num_steps = 0
        # Above 0: a chunk's borders depend on its own sequence alone, never on what shares the step.
        self.fixed_chunk_tokens = fixed_chunk_tokens
        self.max_batch_tokens = max_batch_tokens
        self.max_chunk_tokens = max_chunk_tokens
        self.max_sequences = max_sequences
        self.max_waiting = max_waiting
        self.waiting = FairQueue()
        self.running: list[Sequence] = []
        # Further answers to a prompt, by the answer that computes it.
        self._held: dict[int, list[Sequence]] = {}
        self._num_held = 0
        self.num_preemptions = 0
        self._preempted = False

    @property
    def has_work(self) -> bool:
        """Whether a step would have something to do."""
        return bool(self.waiting or self.running)

    @property
    def num_waiting(self) -> int:
        """How many sequences have no place in the batch."""
        return len(self.waiting) + self._num_held

    def submit(self, sequence: Sequence) -> None:
        """Put a new sequence in the queue; one with a leader waits until that one's prompt can be shared.

        Raises:
            EngineBusy: when `max_waiting` sequences wait already.
        """
        self.require_room(1)
        self.waiting.open(sequence)
        if sequence.leader_id:
            sequence.state = SequenceState.HELD
            self._held.setdefault(sequence.leader_id, []).append(sequence)
            self._num_held += 1
        else:
            self.waiting.push(sequence)

    def require_room(self, number: int) -> None:
        """Raise EngineBusy when `number` more sequences may not wait, SpecError when so many never may."""
        if number > self.max_waiting:
            most = self.max_waiting
            raise placed(
                "n",
                f"{number} answers at once are more than the {most} that may wait here; ask for fewer (n)",
            )
        if self.num_waiting + number > self.max_waiting:
            raise EngineBusy.of("busy", waiting=self.num_waiting, most=self.max_waiting)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, decodes before prompt chunks, at most one chunk a sequence."""
        self._preempted = False
        self.num_steps += 1
        decodes = list(self._decode_chunks())
        if len(decodes) == len(self.running) and not self.waiting:
            # Nobody has a prompt, and nobody was preempted: who is waits.
            return decodes
        limit = self._chunk_limit() if decodes else self.max_batch_tokens
        left = self.max_batch_tokens - len(decodes)
        if self.drafter is not None:
            left -= sum(len(chunk.drafts) for chunk in decodes)
        prompts = list(self._prompt_chunks(min(limit, left)))
        # An older prompt may have taken the blocks of a younger sequence after that one was planned.
        return [chunk for chunk in decodes + prompts if chunk.sequence.state is SequenceState.RUNNING]

    def _chunk_limit(self) -> int:
        """How many tokens of prompts a step takes beside decodes: small bites, so that the others' next tokens do not wait
        long, and larger ones where prompts queue up, for then answers wait for their first tokens."""
        if self.fixed_chunk_tokens:
            return self.max_chunk_tokens
        pending = sum(one.num_missing_tokens for one in self.running if not one.is_decoding)
        places = self.max_sequences - len(self.running)
        pending += sum(one.num_missing_tokens for one in islice(self.waiting.members(), places))
        return min(self.max_chunk_tokens, max(CALM_CHUNK_TOKENS, pending // PENDING_PER_TOKEN))

    def commit(self, chunks: list[Chunk]) -> None:
        """Note that `chunks` were computed, and let others find the blocks that are full now."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed_tokens = chunk.end
            # Charged by the block: once in sixteen steps of a sequence instead of in each.
            if chunk.end // BLOCK_TOKENS > sequence.num_counted_tokens // BLOCK_TOKENS:
                self._charge_answer(sequence, chunk.end // BLOCK_TOKENS * BLOCK_TOKENS)
            sequence.num_counted_tokens = max(sequence.num_counted_tokens, chunk.end)
            # Blocks of a shorter piece hold other roundings than those of a whole one.
            if not self.fixed_chunk_tokens or chunk.num_tokens == self.fixed_chunk_tokens:
                for index in range(chunk.start // BLOCK_TOKENS, chunk.end // BLOCK_TOKENS):
                    self.pool.remember(sequence.block_ids[index], sequence.block_hash(index))
            if self._held and chunk.end >= sequence.num_prompt_tokens:
                self._let_go(sequence.id)

    def remove(self, sequence: Sequence) -> None:
        """Take a finished or cancelled sequence out and free its blocks."""
        if sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
        elif sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is SequenceState.HELD:
            self._held[sequence.leader_id].remove(sequence)
            self._num_held -= 1
        sequence.state = SequenceState.FINISHED
        self._charge_answer(sequence, len(sequence.token_ids))
        if self.drafter is not None:
            self.drafter.forget(sequence)
        self.waiting.close(sequence)
        self._free_blocks(sequence)
        if self._held:
            self._let_go(sequence.id)

    def _charge_answer(self, sequence: Sequence, end: int) -> None:
        """Charge its key for the answer's tokens before `end` that it was not charged for."""
        charged = max(sequence.num_prompt_tokens, sequence.num_counted_tokens // BLOCK_TOKENS * BLOCK_TOKENS)
        if end > charged:
            self.waiting.charge(sequence, OUTPUT_WEIGHT * (end - charged))

    def _let_go(self, leader_id: int) -> None:
        """Let the further answers to a prompt wait for a place like all others."""
        for sequence in self._held.pop(leader_id, ()):
            self._num_held -= 1
            sequence.state = SequenceState.WAITING
            self.waiting.push(sequence)

    def _decode_chunks(self) -> Iterator[Chunk]:
        drafter = self.drafter if not self.waiting and all(one.is_decoding for one in self.running) else None
        if drafter is not None:
            drafter.begin(len(self.running))
        for sequence in list(self.running):
            if sequence.state is not SequenceState.RUNNING or not sequence.is_decoding:
                continue
            if self._make_room(sequence, len(sequence.token_ids)):
                chunk = Chunk(sequence, sequence.num_computed_tokens, len(sequence.token_ids))
                if drafter is not None:
                    chunk.drafts = self._drafts(drafter, sequence)
                    chunk.end += len(chunk.drafts)
                yield chunk

    def _drafts(self, drafter: NgramDrafter, sequence: Sequence) -> tuple[int, ...]:
        """Guesses for which there is room without taking anything from anybody."""
        num_running = len(self.running)
        free = (self.pool.num_free - num_running + len(sequence.block_ids)) * BLOCK_TOKENS
        most = min(self.max_batch_tokens // num_running - 1, free - len(sequence.token_ids))
        drafts = drafter.propose(sequence, most)
        self._grow(sequence, len(sequence.token_ids) + len(drafts))
        return drafts

    def _prompt_chunks(self, budget: int) -> Iterator[Chunk]:
        """In the order of their places; but one that takes several steps leaves half of each to shorter ones after it,
        of which those with the least left go first."""
        prompts = [one for one in self.running if not one.is_decoding]
        if not prompts or prompts[0].num_missing_tokens <= budget or self.fixed_chunk_tokens:
            yield from self._fill(prompts, budget)
            return
        left = prompts[0].num_missing_tokens
        shorter = [one for one in prompts if one.num_missing_tokens < left]
        shorter.sort(key=lambda one: one.num_missing_tokens)
        for chunk in self._fill(shorter, budget // 2, left):
            budget -= chunk.num_tokens
            yield chunk
        yield from self._fill(prompts[:1], budget, 0)

    def _fill(
        self, sequences: list[Sequence], budget: int, shorter_than: int | None = None
    ) -> Iterator[Chunk]:
        """Chunks of these, then of those that wait: all, or those that are `shorter_than` so many tokens."""
        for sequence in sequences:
            if sequence.state is not SequenceState.RUNNING or budget <= 0:
                continue
            end = self._end_of_chunk(sequence, budget)
            if end and self._make_room(sequence, end):
                budget -= end - sequence.num_computed_tokens
                yield Chunk(sequence, sequence.num_computed_tokens, end)
        while budget > 0 and (admitted := self._admit_next(shorter_than)) is not None:
            end = self._end_of_chunk(admitted, budget)
            if not end:
                return
            self._grow(admitted, end)
            budget -= end - admitted.num_computed_tokens
            yield Chunk(admitted, admitted.num_computed_tokens, end)

    def _end_of_chunk(self, sequence: Sequence, budget: int) -> int:
        """Where the next chunk ends; 0 when it has to wait for a step with more room."""
        start = sequence.num_computed_tokens
        if not self.fixed_chunk_tokens:
            return start + min(sequence.num_missing_tokens, budget)
        if start >= sequence.num_prompt_tokens:
            # What was answered before a preemption, as it was answered: token by token.
            return start + 1
        end = min(start + self.fixed_chunk_tokens, sequence.num_prompt_tokens)
        return end if end - start <= budget else 0

    def _admit_next(self, shorter_than: int | None = None) -> Sequence | None:
        """Start the next waiting sequence that is short enough; None when none may start now."""
        # A sequence preempted in this very step waits at least until the next one.
        if self._preempted or not self.waiting or len(self.running) >= self.max_sequences:
            return None
        if shorter_than is not None:
            found, passed = choose_shorter(self.waiting, shorter_than, self.num_steps)
            if found is None or not self._admit(found):
                return None
            note_passed(passed, self.num_steps)
            return found
        if self.affinity is None or len(self.waiting) == 1:
            return self._admit_first(self.waiting.window(1))
        window = self.waiting.window(WINDOW)
        place = self.affinity.choose(window, self.running, self.num_steps)
        if not self._admit(window[place]):
            # Whom the others would share experts with may be too long for now; the first in the order may fit.
            return self._admit_first(window) if place else None
        note_overtaken(window[:place], self.num_steps)
        return window[place]

    def _admit_first(self, window: list[Sequence]) -> Sequence | None:
        return window[0] if self._admit(window[0]) else None

    def _admit(self, sequence: Sequence) -> bool:
        """Start a waiting sequence if all its tokens fit beside one more block for each running one."""
        reused = reusable_blocks(sequence, self.pool, self.fixed_chunk_tokens)
        num_new = num_blocks_for(len(sequence.token_ids)) - len(reused)
        if self.pool.num_free - self.pool.num_free_among(reused) < num_new + len(self.running):
            return False
        self.waiting.remove(sequence)
        self.pool.hold(reused)
        sequence.block_ids = reused
        sequence.num_computed_tokens = len(reused) * BLOCK_TOKENS
        if not sequence.has_begun:
            sequence.num_reused_tokens = sequence.num_computed_tokens
            sequence.num_counted_tokens = sequence.num_computed_tokens
        if sequence.num_preemptions == 0:
            # At once, and not while it is computed: the next one admitted in this step should be another key's.
            self.waiting.charge(sequence, sequence.num_missing_tokens)
        sequence.state = SequenceState.RUNNING
        self.running.append(sequence)
        return True

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` blocks for `num_tokens`, taken from the youngest if need be; False when that was itself."""
        while self.pool.num_free < num_blocks_for(num_tokens) - len(sequence.block_ids):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        self._grow(sequence, num_tokens)
        return True

    def _grow(self, sequence: Sequence, num_tokens: int) -> None:
        for _ in range(num_blocks_for(num_tokens) - len(sequence.block_ids)):
            sequence.block_ids.append(self.pool.allocate())

    def _preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to the head of the queue; its tokens will be computed again."""
        self._preempted = True
        self.running.remove(sequence)
        self._free_blocks(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push_preempted(sequence)

    def _free_blocks(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []
