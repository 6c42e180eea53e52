"""The engine: sequences in, events out, one step at a time. Not thread-safe: one thread owns it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as Chosen
from itertools import count
from typing import Any

from torch import Tensor

from moe_core.engine.affinity import ExpertAffinity
from moe_core.engine.block_pool import BLOCK_TOKENS, BlockPool
from moe_core.engine.detokenizer import Detokenizer, TextStream
from moe_core.engine.events import Delta, Done, Event, Failed, Started
from moe_core.engine.guessed import said_after
from moe_core.engine.ngram import NgramDrafter
from moe_core.engine.residency import ResidentExperts
from moe_core.engine.routed_experts import RoutedExperts, require_room
from moe_core.engine.runner import ModelRunner
from moe_core.engine.sampler import Sample, sample
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Chunk, Scheduler
from moe_core.engine.score_edits import ScoreEdits, TokenMatcher
from moe_core.engine.sequence import FinishReason, Sequence, SequenceState
from moe_core.engine.stats import EngineStats
from moe_core.errors import PromptTooLong, placed
from moe_core.model.decoder import Decoder
from moe_core.spec import ServeSpec

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model."""

    def __init__(
        self,
        spec: ServeSpec,
        model: Decoder,
        *,
        end_tokens: Iterable[int] = (),
        residency: ResidentExperts | None = None,
    ) -> None:
        self.spec = spec
        self.routing = spec.routing()
        # One block more than asked for: block 0 is padding.
        self.pool = BlockPool(spec.kv_tokens // BLOCK_TOKENS + 1)
        self.scheduler = Scheduler(
            self.pool,
            max_batch_tokens=spec.max_batch_tokens,
            max_chunk_tokens=spec.max_chunk_tokens,
            max_sequences=spec.max_sequences,
            max_waiting=spec.max_waiting,
            fixed_chunk_tokens=spec.fixed_chunk_tokens if spec.batch_invariant else 0,
        )
        self.runner = ModelRunner(
            model,
            self.routing,
            num_blocks=self.pool.num_blocks,
            max_batch_tokens=spec.max_batch_tokens,
            num_threads=spec.num_threads,
            residency=residency,
        )
        counts = self.runner.counts
        if counts is not None and spec.expert_affinity_steps:
            self.scheduler.affinity = ExpertAffinity(
                counts, max_delay_steps=spec.expert_affinity_steps, max_sequences=2 * spec.max_sequences
            )
        self.stats = EngineStats(counts, self.routing.codes)
        self.max_tokens = min(model.spec.max_position_embeddings, (self.pool.num_blocks - 1) * BLOCK_TOKENS)
        self.scheduler.drafter = NgramDrafter.chosen(
            spec.ngram_tokens,
            changes_nothing=self.runner.computes_alone and not spec.batch_invariant,
            max_length=self.max_tokens,
            costs=self.runner.costs,
        )
        self._eos = frozenset(model.spec.eos_token_ids).union(end_tokens)
        self._vocab_size = model.spec.vocab_size
        self._sequences: dict[int, Sequence] = {}
        self._ids = count(1)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._eos

    @property
    def has_work(self) -> bool:
        """Whether a step would have something to do."""
        return bool(self._sequences)

    def submit(
        self,
        prompt_ids: list[int],
        sampling: SamplingParams,
        stream: TextStream,
        *,
        request_id: str = "",
        domain: int = -1,
        cache_salt: str = "",
        record_routing: bool = False,
        routing_start: int = 0,
        fair_key: str = "",
        priority: int = 0,
        matcher: TokenMatcher | None = None,
        leader: Sequence | None = None,
    ) -> Sequence:
        """Queue a prompt; its events come out of `step`. A further answer to the prompt of `leader` shares its blocks.

        Raises:
            PromptTooLong: when not even one token of answer would fit.
            EngineBusy: when the queue is full.
            SpecError: for an empty prompt, a token outside the vocabulary, or a record of routing that would be too long.
        """
        self.check_prompt(prompt_ids)
        sampling.check_tokens(self._vocab_size)
        sequence = Sequence(
            id=next(self._ids),
            request_id=request_id,
            token_ids=list(prompt_ids),
            num_prompt_tokens=len(prompt_ids),
            sampling=sampling,
            detokenizer=Detokenizer(stream, sampling.stop, sampling.min_tokens),
            domain=domain,
            cache_salt=cache_salt,
            routed_experts=self._new_record(len(prompt_ids), sampling, routing_start)
            if record_routing
            else None,
            fair_key=fair_key,
            priority=priority,
            leader_id=leader.id if leader is not None and leader.id in self._sequences else 0,
        )
        if sampling.edits_scores or matcher is not None:
            sequence.score_edits = ScoreEdits(
                sampling,
                sequence.token_ids,
                vocab_size=self._vocab_size,
                end_ids=self._eos,
                matcher=matcher,
            )
        self.scheduler.submit(sequence)
        self._sequences[sequence.id] = sequence
        return sequence

    def submit_choices(
        self,
        prompt_ids: list[int],
        sampling: SamplingParams,
        choices: Chosen[tuple[TextStream, TokenMatcher | None]],
        **options: Any,
    ) -> list[Sequence]:
        """Queue one prompt for several answers, each with a seed of its own; the first computes the prompt for all.

        Raises what `submit` raises, and then no answer is queued.
        """
        self.scheduler.require_room(len(choices))
        answers: list[Sequence] = []
        for index, (stream, matcher) in enumerate(choices):
            leader = answers[0] if answers else None
            own = sampling.of_choice(index)
            answers.append(self.submit(prompt_ids, own, stream, matcher=matcher, leader=leader, **options))
        return answers

    def check_prompt(self, prompt_ids: list[int]) -> None:
        """Raise SpecError or PromptTooLong for a prompt that cannot be served."""
        if not prompt_ids:
            raise placed("prompt", "the prompt is empty: send at least one token")
        if len(prompt_ids) >= self.max_tokens:
            raise PromptTooLong.of("prompt_too_long", tokens=len(prompt_ids), most=self.max_tokens - 1)
        if min(prompt_ids) < 0 or max(prompt_ids) >= self._vocab_size:
            raise placed("prompt", f"a prompt token is outside the vocabulary of {self._vocab_size}")

    def cancel(self, *sequence_ids: int) -> None:
        """Mark sequences; the next step ends them and frees their blocks. Unknown and finished ones are ignored."""
        for sequence_id in sequence_ids:
            if sequence_id in self._sequences:
                self._sequences[sequence_id].cancelled = True

    def step(self) -> list[Event]:
        """Compute one batch and tell what became of each sequence in it."""
        events: list[Event] = [*self._end_cancelled(), *self._end_overdue()]
        chunks = self._plan()
        if chunks:
            events += self._note_started(chunks)
            logits = self.runner.run(chunks, one_by_one=self.spec.batch_invariant)
            if any(chunk.drafts for chunk in chunks):
                events += self._settle(chunks, logits)
            else:
                self.stats.count_tokens(chunks)
                self.scheduler.commit(chunks)
                sampled = [chunk.sequence for chunk in chunks if chunk.wants_sample]
                events += self._advance(sampled, self._sample(logits, sampled) if sampled else [])
        self.stats.publish_if_due(self)
        return events

    def end_all(self, code: str, message: str) -> list[Event]:
        """Fail every sequence that is left, and free its blocks."""
        return [self._fail(sequence, code, message) for sequence in list(self._sequences.values())]

    def close(self) -> None:
        """Let go of files and threads; after the last step."""
        if self.runner.residency is not None:
            self.runner.residency.close()

    def forget_history(self) -> None:
        """Start statistics and prefix cache anew; for after the warm-up."""
        self.pool.forget_all()
        if self.runner.counts is not None:
            self.runner.counts.forget()
        if self.scheduler.affinity is not None:
            self.scheduler.affinity.forget()
        self.stats = EngineStats(self.runner.counts, self.routing.codes)

    # The steps of a step, in order.

    def _end_cancelled(self) -> Iterable[Event]:
        for sequence in [sequence for sequence in self._sequences.values() if sequence.cancelled]:
            yield self._finish(sequence, FinishReason.CANCELLED)

    def _end_overdue(self) -> Iterable[Event]:
        if not self.scheduler.waiting:
            return
        oldest = time.monotonic() - self.spec.max_wait_s
        for sequence in self.scheduler.waiting.members():
            if sequence.started_at is None and sequence.arrived_at < oldest:
                waited = f"the request waited {self.spec.max_wait_s:g} s without a place in the batch"
                yield self._fail(sequence, "queue_timeout", waited)

    def _plan(self) -> list[Chunk]:
        chunks = self.scheduler.schedule()
        if len(chunks) < 2:
            return chunks
        # Attention takes single tokens as one batch, in front; guesses are such too where each is computed by itself.
        return sorted(chunks, key=lambda one: (one.num_tokens > 1) + (one.num_tokens > 1 + len(one.drafts)))

    def _note_started(self, chunks: list[Chunk]) -> Iterable[Event]:
        now = time.monotonic()
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.started_at is None:
                sequence.started_at = now
                yield Started(sequence.id, sequence.num_prompt_tokens, sequence.num_reused_tokens)

    def _settle(self, chunks: list[Chunk], logits: Tensor) -> Iterable[Event]:
        """A step with guesses: keep those that the model says too, and what it says after the last of them."""
        told = said_after(chunks, logits, self.runner.likeliest(logits))
        for chunk, samples in told:
            if chunk.drafts:
                self.stats.note_guesses(len(chunk.drafts), len(samples) - 1)
        settled = [chunk.settled(max(0, len(samples) - 1)) for chunk, samples in told]
        self.runner.count(settled)
        self.stats.count_tokens(settled)
        for chunk, (_, samples) in zip(settled, told, strict=True):
            for one in samples:
                yield from self._advance([chunk.sequence], [one])
                if chunk.sequence.state is SequenceState.FINISHED:
                    break
            else:
                # After its tokens are known: its full blocks are named by them.
                self.scheduler.commit([chunk])

    def _sample(self, logits: Tensor, sequences: list[Sequence]) -> list[Sample]:
        return sample(logits, sequences, self.runner.likeliest(logits))

    def _advance(self, sequences: list[Sequence], samples: list[Sample]) -> Iterable[Event]:
        now = time.monotonic()
        for sequence, drawn in zip(sequences, samples, strict=True):
            if drawn.token_id is None:
                yield self._fail(sequence, *drawn.failure)
                continue
            sequence.token_ids.append(drawn.token_id)
            if sequence.score_edits is not None:
                sequence.score_edits.advance(drawn.token_id)
            self.stats.note_output(sequence, now)
            yield from self._tell(sequence, drawn)

    def _tell(self, sequence: Sequence, drawn: Sample) -> Iterable[Event]:
        assert drawn.token_id is not None
        ends = self._ends_answer(sequence.sampling, drawn.token_id)
        text = "" if ends else sequence.detokenizer.push(drawn.token_id)
        reason = self._reason_to_stop(sequence, ends)
        if reason is not None:
            text += sequence.detokenizer.finish()
        yield Delta(sequence.id, text, (drawn.token_id,), () if drawn.logprob is None else (drawn.logprob,))
        if reason is not None:
            yield self._finish(sequence, reason)

    def _ends_answer(self, sampling: SamplingParams, token_id: int) -> bool:
        return token_id in sampling.stop_token_ids or (token_id in self._eos and not sampling.ignore_eos)

    def _reason_to_stop(self, sequence: Sequence, ends: bool) -> FinishReason | None:
        if ends or sequence.detokenizer.stopped:
            return FinishReason.STOP
        if sequence.score_edits is not None and sequence.score_edits.is_complete:
            return FinishReason.STOP
        if (
            sequence.num_output_tokens >= sequence.sampling.max_tokens
            or len(sequence.token_ids) >= self.max_tokens
        ):
            return FinishReason.LENGTH
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Done:
        self._drop(sequence)
        return Done(
            sequence.id,
            reason,
            sequence.num_prompt_tokens,
            sequence.num_reused_tokens,
            sequence.num_output_tokens,
            sequence.timing_ms(),
            None if sequence.routed_experts is None else sequence.routed_experts.encoded(),
        )

    def _fail(self, sequence: Sequence, code: str, message: str) -> Failed:
        logger.warning("request %s failed: %s: %s", sequence.request_id, code, message)
        self._drop(sequence)
        return Failed(sequence.id, code, message)

    def _drop(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        if self.scheduler.affinity is not None:
            self.scheduler.affinity.learn(sequence)
        del self._sequences[sequence.id]

    def _new_record(
        self, num_prompt_tokens: int, sampling: SamplingParams, start: int
    ) -> RoutedExperts | None:
        """Where the routing of an answer is noted from token `start` on; None for a model without experts."""
        if start > num_prompt_tokens:
            name = "routed_experts_start_len"
            raise placed(name, f"{name} ({start}) is beyond the prompt of {num_prompt_tokens} tokens")
        spec = self.runner.model.spec
        if spec.moe is None:
            return None
        longest = min(num_prompt_tokens + sampling.max_tokens, self.max_tokens) - start
        require_room(spec.moe, spec.num_hidden_layers, longest)
        return RoutedExperts(spec.moe, spec.num_hidden_layers, start)
