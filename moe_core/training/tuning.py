"""The main job: experts laid, specialised, the router tuned on logs, measured before and after and beside a control.

A run that was killed starts again from its last checkpoint: what was upcycled comes from the seed, what was learnt
from the files, and the figures of finished stages from the manifest.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from moe_core.checkpoint.inspect import inspect_dir
from moe_core.checkpoint.store import save, stored_dtype
from moe_core.kernels.precision import training_dtype
from moe_core.operations.routing_figures import Choices, RoutingFigures
from moe_core.spec import RoutingSpec, TuneSpec
from moe_core.training.checkpoint import CheckpointStore
from moe_core.training.job import JobIO, finite_or_null
from moe_core.training.lanes import Lanes
from moe_core.training.loop import Groups, Saver, run_steps
from moe_core.training.progress import Progress
from moe_core.training.recipes.evaluate import evaluate
from moe_core.training.recipes.specialise import Specialise
from moe_core.training.recipes.tune_router import TuneRouter
from moe_core.training.tally import Tally
from moe_core.training.trunk import TrunkCache
from moe_core.training.workbench import MODEL, build, config_hash

STAGES = (
    "upcycle",
    "evaluate_before",
    "specialise",
    "route",
    "evaluate_after",
    "control",
    "evaluate_control",
    "save",
)
# Which figures of the report a stage gives.
MEASURED = {"evaluate_before": "before", "evaluate_after": "after", "evaluate_control": "control"}
# The gates that each measurement is of, by the group that holds them in a checkpoint.
GATES_OF = {
    "evaluate_before": "first-gates",
    "evaluate_after": "tuned-gates",
    "evaluate_control": "control-gates",
}
# What the held-out tokens chose at first, to compare with later.
FIRST_CHOICES = "first-choices"


class Tuning:
    """One tuning run, from its inputs to its model directory."""

    def __init__(self, spec: TuneSpec, io: JobIO, lanes: Lanes) -> None:
        self.spec, self.io, self.lanes = spec, io, lanes
        self.stages = [stage for stage in STAGES if spec.control or "control" not in stage]
        self.progress = Progress(io, self.stages)
        self.config_hash = config_hash(spec, io.inputs)
        # What the model is written in too, so that an unchanged trunk is the same file.
        self.stored = stored_dtype(io.inputs[MODEL])
        held = training_dtype(spec.dtype, self.stored)
        store = CheckpointStore(io.checkpoint_dir, self.config_hash, lanes.num_lanes, held)
        self.saver = Saver(store, self.progress, spec)
        # Figures of finished stages; they travel in the checkpoints.
        self.facts: dict[str, Any] = {"seconds": {}}
        # Tensors that later stages need and that do not change any more.
        self.kept: Groups = {}

    def run(self) -> dict[str, Any]:
        """Every stage that is still to do; returns the result."""
        self.progress.stage("upcycle")
        self.progress.raise_if_asked()
        self.bench = build(self.spec, self.io.inputs)
        if self.bench.reads_plainly:
            self.progress.say("plain_logs")
        self.kept["first-gates"] = self.bench.gates()
        stage, step, groups = self._resumed()
        for name in self.stages[self.stages.index(stage) :]:
            began = time.monotonic()
            self.progress.stage(name)
            self._run_stage(name, step, groups)
            seconds = self.facts["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - began, 2)
            self._save_between(name)
            step, groups = 0, {}
        return self._result()

    def _resumed(self) -> tuple[str, int, Groups]:
        """Where to go on, and the tensors of the stage that was interrupted."""
        found = self.saver.store.load_latest()
        if found is None:
            return self.stages[1], 0, {}
        saved, notes = found
        for code, values in notes:
            self.progress.say(code, "warning", **values)
        self.facts = saved.facts
        self.progress.say("resumed", stage=saved.stage, step=saved.step)
        if FIRST_CHOICES in saved.groups:
            self.kept[FIRST_CHOICES] = saved.groups[FIRST_CHOICES]
        if saved.stage != "specialise":
            self.kept.update((name, group) for name, group in saved.groups.items() if _is_kept(name))
            self._specialise_learner().restore(self.kept)
        return saved.stage, saved.step, saved.groups

    def _run_stage(self, stage: str, step: int, groups: Groups) -> None:
        if stage in MEASURED:
            self._measure(stage)
        elif stage == "specialise":
            self._learn(self._specialise_learner(), step, groups)
        elif stage == "route":
            self._route(stage, self.spec.routing, "tuned-gates", step, groups)
        elif stage == "control":
            self._route(stage, self.spec.routing.deranged(self.spec.seed), "control-gates", step, groups)
        elif stage == "save":
            self._write_model()

    def _measure(self, stage: str) -> None:
        self.bench.advance(0 if stage == "evaluate_before" else self.spec.route_steps)
        self.bench.set_gates(self.kept[GATES_OF[stage]])
        cache = self.bench.held_out
        self._fill(stage, cache)

        def tell(done: int, of: int, tally: Tally) -> None:
            self.progress.raise_if_asked()
            self.progress.step(stage, done, of, tally.mean_loss(), tally, is_running_total=True)

        places = range(len(cache.windows))
        moe = self.bench.model.spec.moe
        assert moe is not None
        figures = RoutingFigures(moe, len(self.spec.routing.codes))
        tally = evaluate(self.lanes, self.bench.cut, cache, places, self.spec.routing, tell, figures)
        routing = figures.report(self._choices_before())
        if stage == "evaluate_before":
            self.kept[FIRST_CHOICES] = {
                str(layer): ids.to(torch.int16) for layer, ids in figures.choices().items()
            }
        self.facts[MEASURED[stage]] = finite_or_null({**tally.summary(), "routing": routing})
        self.io.event(
            "report", {"stage": stage, "name": MEASURED[stage], "figures": self.facts[MEASURED[stage]]}
        )

    def _choices_before(self) -> Choices:
        """What the same tokens chose before anything had learnt; nothing while that is measured."""
        return {int(layer): ids_TK.long() for layer, ids_TK in self.kept.get(FIRST_CHOICES, {}).items()}

    def _specialise_learner(self) -> Specialise:
        return Specialise(self.lanes, self.bench.cut, self.bench.train, self.spec.routing, self.spec)

    def _route(self, stage: str, routing: RoutingSpec, group: str, step: int, groups: Groups) -> None:
        self.bench.set_gates(self.kept["first-gates"])
        self.bench.advance(0)
        learner = TuneRouter(self.lanes, self.bench.cut, self.bench.train, routing, self.spec, stage)
        self._learn(learner, step, groups)
        self.kept[group] = self.bench.gates()

    def _learn(self, learner: Specialise | TuneRouter, step: int, groups: Groups) -> None:
        if groups:
            learner.restore(groups)
        if step < learner.num_steps:
            self._fill(learner.stage, self.bench.train)
        routing = learner.routing
        run_steps(
            learner, step, self.progress, self.saver, self.facts, self.kept, (self.bench.model.spec, routing)
        )
        self.kept.update((name, group) for name, group in learner.groups().items() if _is_kept(name))

    def _fill(self, stage: str, cache: TrunkCache) -> None:
        """Compute what the trunk says about every window, once."""
        missing = cache.missing(range(len(cache.windows)))
        for start in range(0, len(missing), self.lanes.num_lanes):
            self.progress.raise_if_asked()
            self.lanes.each(cache.fill, missing[start : start + self.lanes.num_lanes])
            self.progress.work(stage, min(start + self.lanes.num_lanes, len(missing)), len(missing))

    def _save_between(self, stage: str) -> None:
        """A finished stage is never done again."""
        after = self.stages.index(stage) + 1
        if after < len(self.stages):
            self.saver.save(self.stages[after], 0, self.facts, self.kept, frozenset(self.kept))

    def _write_model(self) -> None:
        self.bench.set_gates(self.kept["tuned-gates"])
        self.bench.advance(self.spec.route_steps)
        save(self.bench.model, self.io.out_dir, dtype=self.stored, tokenizer_from=self.io.inputs[MODEL])

    def _result(self) -> dict[str, Any]:
        tuning = {name: self.facts[name] for name in MEASURED.values() if name in self.facts}
        tuning["gain"] = gain(tuning)
        self.io.event("report", {"stage": "save", "name": "tuning", "figures": tuning})
        return {
            "spec": self.bench.model.spec.model_dump(mode="json"),
            "inspection": inspect_dir(self.io.out_dir),
            "tuning": tuning,
            "lineage": {
                "config_hash": self.config_hash,
                "environment": self.saver.store.environment,
                "train_windows": len(self.bench.train.windows),
                "held_out_windows": len(self.bench.held_out.windows),
                "window_tokens": self.spec.window_tokens,
                "seconds": self.facts["seconds"],
            },
        }


def gain(tuning: dict[str, Any]) -> dict[str, float | None]:
    """What tuning changed: loss in per cent, mapped share against the control, MaxVio."""
    before, after, control = tuning["before"], tuning["after"], tuning.get("control")
    share = after["mapped_share"]
    lost = after["loss"] / before["loss"] - 1.0 if after["loss"] and before["loss"] else None
    return {
        "loss_percent": None if lost is None else round(100.0 * lost, 2),
        "share_over_control": None if control is None or share is None else share - control["mapped_share"],
        "max_vio_change": after["max_vio"] - before["max_vio"],
    }


def _is_kept(group: str) -> bool:
    """Whether a group of a checkpoint is finished work, not the state of a learner."""
    return group.startswith("expert-") or group.endswith("-gates") or group == FIRST_CHOICES
