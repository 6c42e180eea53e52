"""What a run says while it goes on: stages, steps at most four a second, lines of log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from moe_core.errors import Cancelled
from moe_core.operations.metrics import load_entropy, max_violation
from moe_core.sentences import RUN
from moe_core.training.job import JobIO, Paused, finite_or_null
from moe_core.training.tally import Tally

MIN_SECONDS_BETWEEN_STEPS = 0.25


class Progress:
    """Speaks for one run."""

    def __init__(self, io: JobIO, stages: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.io = io
        self.stages = list(stages)
        self.clock = clock
        self._last_step = float("-inf")
        self._began = self.clock()
        self._tokens = 0

    def stage(self, name: str) -> None:
        """A stage begins."""
        index = self.stages.index(name)
        self.io.event("stage", {"stage": name, "index": index, "of": len(self.stages)})
        self._began, self._tokens = self.clock(), 0
        self._last_step = float("-inf")

    def say(self, code: str, level: str = "info", **values: object) -> None:
        """A line for people: one of `moe_core.sentences.RUN`, with what it is made of, so that it can be translated."""
        text, plain = RUN.say(code, **values), {name: str(value) for name, value in values.items()}
        self.io.event("log", {"level": level, "text": text, "code": code, "values": plain})

    def work(self, stage: str, done: int, of: int) -> None:
        """Progress of a part that has no loss: reading, converting, computing the trunk."""
        if self._due(done >= of):
            self.io.event("step", {"stage": stage, "step": done, "of": of})

    def part(self, stage: str, part: str, done: int, of: int, inside: float) -> None:
        """So much of one part of a stage is done; `inside` is the share of the whole stage, from 0 to 1."""
        if self._due(done >= of):
            told = {"stage": stage, "part": part, "step": done, "of": of, "inside": round(inside, 4)}
            self.io.event("step", told)

    def step(
        self,
        stage: str,
        step: int,
        of: int,
        loss: float | None,
        tally: Tally,
        *,
        is_running_total: bool = False,
        **more: Any,
    ) -> None:
        """Step number `step` of `of` is done; what was counted in it, or in the stage so far, goes along."""
        tokens = int(tally.tokens_N.sum())
        self._tokens = tokens if is_running_total else self._tokens + tokens
        if not self._due(step >= of):
            return
        elapsed = max(1e-9, self.clock() - self._began)
        figures: dict[str, Any] = {
            "stage": stage,
            "step": step,
            "of": of,
            "loss": loss,
            "loss_by_domain": tally.loss_by_domain(),
            "tokens_per_second": self._tokens / elapsed,
            **routing_figures(tally),
            **more,
        }
        self.io.event("step", finite_or_null(figures))

    def raise_if_asked(self) -> None:
        """Cancelled or Paused when the caller wants the run to end."""
        stop = self.io.should_stop()
        if stop == "cancel":
            raise Cancelled("the run was cancelled")
        if stop == "pause":
            raise Paused("the run was paused; its checkpoint holds the state to go on from")

    def _due(self, is_last: bool) -> bool:
        now = self.clock()
        if not is_last and now - self._last_step < MIN_SECONDS_BETWEEN_STEPS:
            return False
        self._last_step = now
        return True


def routing_figures(tally: Tally) -> dict[str, Any]:
    """Heat, and the figures that mean something when a router decided."""
    figures: dict[str, Any] = {"heat": tally.heat()}
    if int(tally.hits_NL.sum()) or float(tally.hesitation_L.sum()):
        figures["max_vio"] = max_violation(tally.load_LE)
        figures["entropy"] = load_entropy(tally.load_LE)
        figures["mapped_share"] = tally.mapped_share()
    return figures
