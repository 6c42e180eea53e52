"""What the engine has done since it started, published as snapshots at step boundaries.

Shapes: P phases, N domains (row 0: none), L expert layers, E experts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Chunks
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.scheduler import Chunk
from moe_core.engine.sequence import Sequence

if TYPE_CHECKING:
    from moe_core.engine.engine import Engine

PUBLISH_EVERY_S = 0.2
MAX_LATENCIES = 2048


@dataclass(frozen=True, slots=True)
class Latencies:
    """The newest latencies in ms, and how many there were in all, so that a reader can tell what is new to it."""

    num_ever: int
    newest_ms: tuple[float, ...]

    def since(self, num_known: int) -> list[float]:
        """Those after the first `num_known`, as far as they are still kept."""
        num_new = min(self.num_ever - num_known, len(self.newest_ms))
        return list(self.newest_ms[len(self.newest_ms) - num_new :])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The totals at one step boundary."""

    # Grows from one snapshot to the next.
    serial: int
    at_ms: int
    # None for a model without experts.
    counts_PNLE: NDArray[np.int64] | None
    # Visits and hits: see routing_counts.
    reach_PN2: NDArray[np.int64] | None
    num_steps: int
    num_preemptions: int
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    # Tokens that were guessed and computed, and those of them that the model said too.
    guessed_tokens: int
    kept_guesses: int
    running: int
    waiting: int
    kv_used: int
    kv_total: int
    decode_threads: int
    first_token: Latencies
    inter_token: Latencies


class LatencyLog:
    """The last latencies of one kind."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._num_ever = 0

    def add(self, seconds: float) -> None:
        """Note one latency."""
        # Rounded in whole numbers, which takes a tenth of the time of `round`.
        self._newest.append(int(seconds * 100_000 + 0.5) / 100)
        self._num_ever += 1

    def frozen(self) -> Latencies:
        """A copy that does not change."""
        return Latencies(self._num_ever, tuple(self._newest))


class EngineStats:
    """Running totals; the engine's thread writes them, others read published snapshots."""

    def __init__(self, counts: RoutingCounts | None, domains: tuple[str, ...]) -> None:
        self.counts = counts
        self.domains = ("", *domains)
        self.on_publish: Callable[[Snapshot], None] | None = None
        self._num_snapshots = 0
        self._num_steps = 0
        self._prompt_tokens = 0
        self._reused_tokens = 0
        self._output_tokens = 0
        self._guessed_tokens = 0
        self._kept_guesses = 0
        self._first_token = LatencyLog()
        self._inter_token = LatencyLog()
        self._published_at = 0.0

    def count_tokens(self, chunks: Chunks[Chunk]) -> None:
        """Count the prompt tokens of a step that was computed but is not committed; computing again counts nothing."""
        self._num_steps += 1
        for chunk in chunks:
            sequence = chunk.sequence
            if chunk.start == sequence.num_reused_tokens == sequence.num_counted_tokens:
                self._reused_tokens += sequence.num_reused_tokens
            first = max(chunk.start, sequence.num_counted_tokens)
            self._prompt_tokens += max(0, min(chunk.end, sequence.num_prompt_tokens) - first)

    def note_output(self, sequence: Sequence, now: float) -> None:
        """Count a sampled token and how long it took since the one before, or since the request came."""
        self._output_tokens += 1
        if sequence.last_token_at is None:
            sequence.first_token_at = now
            self._first_token.add(now - sequence.arrived_at)
        else:
            self._inter_token.add(now - sequence.last_token_at)
        sequence.last_token_at = now

    def note_guesses(self, num_guessed: int, num_kept: int) -> None:
        """Count guesses of a step, and those that were right."""
        self._guessed_tokens += num_guessed
        self._kept_guesses += num_kept

    def publish_if_due(self, engine: Engine) -> None:
        """Hand a snapshot to the listener, about five times a second and whenever the engine comes to rest."""
        now = time.monotonic()
        if self.on_publish is None or (engine.has_work and now - self._published_at < PUBLISH_EVERY_S):
            return
        self._published_at = now
        self.on_publish(self.snapshot(engine))

    def snapshot(self, engine: Engine) -> Snapshot:
        """The totals now; call it between steps, on the engine's thread."""
        self._num_snapshots += 1
        return Snapshot(
            serial=self._num_snapshots,
            at_ms=time.time_ns() // 1_000_000,
            counts_PNLE=None if self.counts is None else self.counts.counts_PNLE.cpu().numpy().copy(),
            reach_PN2=None if self.counts is None else self.counts.reach_PN2.cpu().numpy().copy(),
            num_steps=self._num_steps,
            num_preemptions=engine.scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            output_tokens=self._output_tokens,
            guessed_tokens=self._guessed_tokens,
            kept_guesses=self._kept_guesses,
            running=len(engine.scheduler.running),
            waiting=engine.scheduler.num_waiting,
            kv_used=engine.pool.num_used,
            kv_total=engine.pool.num_blocks - 1,
            decode_threads=engine.runner.decode_threads,
            first_token=self._first_token.frozen(),
            inter_token=self._inter_token.frozen(),
        )
