"""The figures of a tuning run by stage. Steps of two stages are never one series: each stage measures something else.

Only stages in which something learns have a place on the run's own axis; what measures counts windows, not steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models.fields.json import KeyTextTransform

from jobs.choices import JobKind
from jobs.models import Job, JobEvent
from jobs.stages import STAGES, Stage

LEARNING = ("specialise", "route", "control")
MEASURING = ("evaluate_before", "evaluate_after", "evaluate_control")
# What only looks has none of them.
WRITING = ("save", "register")
# The control is a yardstick: its figures must not pass for those of the model.
CONTROL_STAGES = ("control", "evaluate_control")


@dataclass(frozen=True, slots=True)
class StageFigures:
    """The last that was told of one stage; None where nothing was."""

    key: str
    title: str
    step: int | None
    of: int | None
    figures: dict[str, Any]

    @property
    def is_deranged(self) -> bool:
        """Whether it learns with the deranged map: a share to those experts is none to the domain's own."""
        return self.key == "control"

    @property
    def is_measuring(self) -> bool:
        """Whether the figures are of held-out logs, all of them so far; else of one batch."""
        return self.key in MEASURING


def stages_of(job: Job) -> list[Stage]:
    """The stages that this job goes through."""
    without_control = job.kind == JobKind.TUNE and not job.inputs.get("tune", {}).get("control", True)
    kept = [stage for stage in STAGES[job.kind] if not (without_control and "control" in stage.key)]
    left_out = set(WRITING) if job.keeps_nothing else set()
    if job.is_measuring:
        left_out.add("operate")
    return [stage for stage in kept if stage.key not in left_out]


def num_turns(tune: dict[str, Any]) -> int:
    """How many experts learn one after the other: each that is mapped, and the general ones in one turn."""
    experts = {expert for domain in tune["routing"]["domains"] for expert in domain["experts"]}
    return len(experts) + bool(tune.get("layout") and tune["routing"].get("general_experts"))


def learning_plan(job: Job) -> list[dict[str, Any]]:
    """The stages that learn, with their numbers of steps: what the axis of the curves is made of."""
    tune = job.inputs.get("tune")
    if not tune:
        return []
    steps = {"specialise": tune["specialise_steps"] * num_turns(tune)}
    return [
        {"key": stage.key, "title": str(stage.title), "steps": steps.get(stage.key, tune["route_steps"])}
        for stage in stages_of(job)
        if stage.key in LEARNING and steps.get(stage.key, tune["route_steps"])
    ]


def stage_figures(job: Job) -> list[StageFigures]:
    """One row for each stage that has figures, in their order, told or not."""
    told = _last_steps(job)
    return [
        StageFigures(
            stage.key, str(stage.title), told.get(stage.key, {}).get("step"), told.get(stage.key, {}).get("of"),
            told.get(stage.key, {}),
        )
        for stage in stages_of(job)
        if stage.key in (*LEARNING, *MEASURING)
    ]  # fmt: skip


def latest_own(rows: list[StageFigures]) -> StageFigures | None:
    """The stage that speaks for the model now: the last that told anything, the control's left out."""
    own = [row for row in rows if row.figures and row.key not in CONTROL_STAGES]
    return own[-1] if own else None


def _last_steps(job: Job) -> dict[str, dict[str, Any]]:
    steps = (
        JobEvent.objects.filter(job=job, kind="step", payload__has_key="loss")
        .annotate(stage=KeyTextTransform("stage", "payload"))
        .order_by("stage", "-seq")
        .distinct("stage")
    )
    return {event.stage: event.payload for event in steps}  # type: ignore[attr-defined]
