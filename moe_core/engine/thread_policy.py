"""How many of a deployment's threads decoding steps use: fewer where the processors are busy with others' work.

On a quiet machine two threads decode 1.6 to 1.8 times as fast as one. Where others want the processors, threads that meet
after each product lose what any of them loses, and one is often quicker, with less of the processor. Which is so cannot be
told beforehand; that something is amiss can: a step's own time on its processor falls behind the clock, or it waits for a
helper that does not run. Only then are numbers tried, stretch by stretch in turn, and the quicker one is kept.

Units of work and their sums do not depend on the number of threads, so answers do not either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Chunks
from dataclasses import dataclass, field

from torch import Tensor

from moe_core.engine.scheduler import Chunk
from moe_core.engine.step_costs import StepCosts
from moe_core.kernels.cpu.native import Library

# Of a step's time, lost to others: above the first a number may be wrong, below the second the machine is quiet.
BUSY, QUIET = 0.1, 0.03
# Steps over which that share is a running mean. None counts as lost more than what it would have taken by itself: who stays
# takes of each step, and who comes by once is no reason for a trial, half of which runs at little more than half the rate.
MEMORY_STEPS = 16
# A stretch lasts so long, some of a scheduler's slices, and its first step pays for the change.
STRETCH_STEPS, STRETCH_S = 2, 0.05
PAIRS, PAIRS_WON = 6, 4
# More threads must gain so much to be worth their processors.
WORTH = 0.95
# Between trials; doubled by each that changed nothing.
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0
# A trial whose stretches are always cut short, because sequences come and go, is given up.
TRIAL_S = 5.0


@dataclass(slots=True)
class Stretch:
    """Steps in a row on one number of threads."""

    num_steps: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> bool:
        """Count a step; whether the stretch is long enough."""
        self.num_steps += 1
        self.seconds += seconds
        return self.num_steps >= STRETCH_STEPS and self.seconds >= STRETCH_S

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.seconds / self.num_steps


@dataclass(slots=True)
class Trial:
    """Fewer threads and more in turn; what is compared are stretches side by side, of steps with as many tokens."""

    fewer: int
    more: int
    pairs: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    _num_tokens: int = 0
    _first: Stretch | None = None
    _now: Stretch = field(default_factory=Stretch)

    @property
    def threads(self) -> int:
        """Those of the next step: each pair begins with what the last one ended with."""
        return self.more if (self._first is None) == (len(self.pairs) % 2 == 0) else self.fewer

    def is_over(self, present: int) -> bool:
        """Whether there is a verdict: another number than the present one can win no more, or all pairs are there."""
        lost = len(self.pairs) - self._num_won(present)
        return len(self.pairs) == PAIRS or lost > PAIRS - PAIRS_WON or self.seconds > TRIAL_S

    @property
    def gain(self) -> tuple[float, list[float]]:
        """The time of a step on more threads over that on fewer: of all pairs, and of each."""
        fewer, more = (sum(pair[side] for pair in self.pairs) for side in (0, 1))
        return more / fewer if fewer else 1.0, [pair[1] / pair[0] for pair in self.pairs]

    def note(self, seconds: float, num_tokens: int) -> None:
        """Count a step that ran on `threads`."""
        self.seconds += seconds
        if num_tokens != self._num_tokens:
            self._num_tokens, self._first, self._now = num_tokens, None, Stretch()
        if not self._now.add(seconds):
            return
        if self._first is None:
            self._first = self._now
        else:
            ended = (self._first.step_s, self._now.step_s)
            self.pairs.append(ended if self.threads == self.more else ended[::-1])
            self._first = None
        self._now = Stretch()

    def verdict(self, present: int) -> int:
        """The number to keep: another than the present one only when it won in all and in most pairs."""
        if len(self.pairs) < PAIRS:
            return present
        gain, _ = self.gain
        if self._num_won(present) < PAIRS_WON:
            return present
        if present == self.fewer:
            return self.more if gain < WORTH else present
        return self.fewer if gain > 1.0 else present

    def _num_won(self, present: int) -> int:
        """Pairs in which the other number than the present one was worth the change."""
        _, each = self.gain
        return sum(one < WORTH for one in each) if present == self.fewer else sum(one > 1.0 for one in each)


class ThreadPolicy:
    """Which number of threads, up to `most`, the next decoding step uses; told of each what it took. Reads no clock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.present = most
        self.trial: Trial | None = None
        # From one to all, each about half of the next.
        self._numbers = sorted({most >> halved for halved in range(most.bit_length())})
        self._seconds = self._lost = 0.0
        # On the present number.
        self._num_steps = 0
        self._pause_s, self._next_trial_at = FIRST_PAUSE_S, 0.0
        self._was_busy = self._goes_down = False

    @property
    def threads(self) -> int:
        """Those of the next step."""
        return self.present if self.trial is None else self.trial.threads

    @property
    def lost_share(self) -> float:
        """Of the time of the last steps on the present number, what others took."""
        return self._lost / self._seconds if self._seconds else 0.0

    def note(self, now: float, seconds: float, lost_s: float, num_tokens: int) -> None:
        """A decoding step on `threads` ended at `now`; of its `seconds` it did not compute for `lost_s`."""
        if self.trial is not None:
            self.trial.note(seconds, num_tokens)
            if self.trial.is_over(self.present):
                self._end(self.trial, now)
            return
        kept = 1 - 1 / MEMORY_STEPS
        own_s = max(0.0, seconds - lost_s)
        lost_s = min(lost_s, own_s)
        self._seconds = self._seconds * kept + own_s + lost_s
        self._lost = self._lost * kept + lost_s
        self._num_steps += 1
        if self._is_due(now):
            self.trial = self._new_trial()

    def _is_due(self, now: float) -> bool:
        if self._num_steps < MEMORY_STEPS:
            return False
        share = self.lost_share
        if share > BUSY:
            self._was_busy = True
        elif share < QUIET and self._was_busy:
            # Something has changed for the better.
            self._was_busy, self._pause_s = False, FIRST_PAUSE_S
            self._next_trial_at = min(self._next_trial_at, now + FIRST_PAUSE_S)
        # On all threads there is nothing to find out while nothing is lost.
        return self.most > 1 and now >= self._next_trial_at and (share > BUSY or self.present < self.most)

    def _new_trial(self) -> Trial:
        place = self._numbers.index(self.present)
        if place in (0, len(self._numbers) - 1):
            self._goes_down = place > 0
        else:
            self._goes_down = not self._goes_down
        below = place - 1 if self._goes_down else place
        return Trial(self._numbers[below], self._numbers[below + 1])

    def _end(self, trial: Trial, now: float) -> None:
        kept = trial.verdict(self.present)
        self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S) if kept == self.present else FIRST_PAUSE_S
        self.present, self.trial = kept, None
        self._next_trial_at = now + self._pause_s
        self._seconds, self._lost, self._num_steps = 0.0, 0.0, 0


class StepThreads:
    """The threads that an engine's steps use: prompts all of them, decoding steps what the policy says."""

    def __init__(self, native: Library, num_threads: int, costs: StepCosts) -> None:
        self.policy = ThreadPolicy(num_threads)
        self._native, self._costs = native, costs

    @property
    def is_trying(self) -> bool:
        """Whether the next decoding step is one of a trial, whose seconds are not those of other steps."""
        return self.policy.trial is not None

    def run(self, chunks: Chunks[Chunk], step: Callable[[Chunks[Chunk]], Tensor]) -> Tensor:
        """What `step` returns for the chunks."""
        num_tokens = 0
        for chunk in chunks:
            if not chunk.is_decode:
                self._use(self.policy.most)
                return step(chunks)
            num_tokens += chunk.num_tokens
        self._use(self.policy.threads)
        waited_ns, began, ran = self._native.waited_ns(), time.perf_counter(), time.thread_time()
        result = step(chunks)
        now, own = time.perf_counter(), time.thread_time() - ran
        # Who waits for a helper and gives way lets the clock run, who finds nobody to give way to does not.
        lost = max(now - began - own, (self._native.waited_ns() - waited_ns) * 1e-9)
        # Guesses make steps longer, each by other numbers: what is compared is a step without them.
        plain = self._costs.of(len(chunks)) / self._costs.of(num_tokens)
        self.policy.note(now, plain * (now - began), plain * lost, len(chunks))
        return result

    def _use(self, num_threads: int) -> None:
        if self._native.num_threads != num_threads:
            self._native.set_threads(num_threads)
