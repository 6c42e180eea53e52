"""The loop of every stage that learns: step, tell, save when due, stop when asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from moe_core.errors import NonFiniteLoss
from moe_core.spec import ModelSpec, RoutingSpec, TuneSpec
from moe_core.training.checkpoint import CheckpointStore, Saved
from moe_core.training.job import Paused
from moe_core.training.progress import Progress
from moe_core.training.recipes.learner import Learner, StepFigures
from moe_core.training.tally import Tally

Groups = dict[str, dict[str, Tensor]]


class Saver:
    """Decides when a checkpoint is due, writes it and tells the caller."""

    def __init__(
        self,
        store: CheckpointStore,
        progress: Progress,
        spec: TuneSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.progress, self.spec, self.clock = store, progress, spec, clock
        self._last = clock()

    def is_due(self, step: int) -> bool:
        """Whether the steps and the seconds since the last checkpoint are enough."""
        waited = self.clock() - self._last
        return step % self.spec.checkpoint_every_steps == 0 and waited >= self.spec.checkpoint_min_seconds

    def save(
        self, stage: str, step: int, facts: dict[str, Any], groups: Groups, frozen: frozenset[str]
    ) -> None:
        """Write a checkpoint now."""
        path, sha256 = self.store.save(Saved(stage, step, facts, groups), frozen)
        self._last = self.clock()
        self.progress.io.saved_checkpoint(path, step, stage, sha256)


def run_steps(
    learner: Learner,
    start: int,
    progress: Progress,
    saver: Saver,
    facts: dict[str, Any],
    kept: Groups,
    tally_for: tuple[ModelSpec, RoutingSpec],
) -> None:
    """Run a learner's steps from `start` on. `kept` is finished work: every checkpoint holds it unchanged.

    Raises NonFiniteLoss that names the step, Cancelled, or Paused after a checkpoint.
    """

    def save(step: int) -> None:
        frozen = learner.frozen_groups() | kept.keys()
        saver.save(learner.stage, step, facts, {**kept, **learner.groups()}, frozen)

    for step in range(start, learner.num_steps):
        try:
            progress.raise_if_asked()
        except Paused:
            save(step)
            raise
        figures = _stepped(learner, step)
        tally = Tally.of(*tally_for, device=figures.passes[0].losses_P.device)
        for passed in figures.passes:
            passed.count_into(tally)
        learner.count_forced(tally, step)
        progress.step(
            learner.stage,
            step + 1,
            learner.num_steps,
            figures.loss,
            tally,
            learning_rate=figures.learning_rate,
            gradient_norm=figures.gradient_norm,
        )
        if saver.is_due(step + 1) and step + 1 < learner.num_steps:
            save(step + 1)


def _stepped(learner: Learner, step: int) -> StepFigures:
    try:
        return learner.step(step)
    except NonFiniteLoss as error:
        rate = f"{learner.peak_learning_rate:g}"
        raise NonFiniteLoss.of(
            "stopped_at_step", step=step + 1, stage=learner.stage, why=error, rate=rate
        ) from error
