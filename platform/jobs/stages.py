"""The stages of each kind of job, in order, with their names and how much of the whole each is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import pgettext_lazy

from jobs.choices import JobKind


@dataclass(frozen=True, slots=True)
class Stage:
    """One station of a job."""

    key: str
    title: str | Promise
    # Rough share of the wall time, for the progress bar alone.
    weight: float


STAGES: dict[str, tuple[Stage, ...]] = {
    JobKind.IMPORT: (
        Stage("read", pgettext_lazy("stage of a job", "Read"), 0.1),
        Stage("convert", pgettext_lazy("stage of a job", "Convert"), 0.7),
        Stage("inspect", pgettext_lazy("stage of a job", "Inspect"), 0.05),
        Stage("register", pgettext_lazy("stage of a job", "Register"), 0.15),
    ),
    JobKind.TUNE: (
        Stage("upcycle", pgettext_lazy("stage of a job", "Lay experts"), 0.05),
        Stage("evaluate_before", pgettext_lazy("stage of a job", "Measure before"), 0.09),
        Stage("specialise", pgettext_lazy("stage of a job", "Specialise experts"), 0.4),
        Stage("route", pgettext_lazy("stage of a job", "Tune the router"), 0.15),
        Stage("evaluate_after", pgettext_lazy("stage of a job", "Measure after"), 0.09),
        Stage("control", pgettext_lazy("stage of a job", "Tune the control"), 0.1),
        Stage("evaluate_control", pgettext_lazy("stage of a job", "Measure the control"), 0.07),
        Stage("save", pgettext_lazy("stage of a job", "Save"), 0.03),
        Stage("register", pgettext_lazy("stage of a job", "Register"), 0.02),
    ),
    JobKind.OPERATE: (
        Stage("read", pgettext_lazy("stage of a job", "Read"), 0.1),
        Stage("operate", pgettext_lazy("stage of a job", "Change"), 0.5),
        Stage("measure", pgettext_lazy("stage of a job", "Measure"), 0.3),
        Stage("save", pgettext_lazy("stage of a job", "Save"), 0.05),
        Stage("register", pgettext_lazy("stage of a job", "Register"), 0.05),
    ),
}


def titles_of(kind: str) -> dict[str, str | Promise]:
    """The titles of a kind's stages by their keys, each said in the language of whoever reads it."""
    return {stage.key: stage.title for stage in STAGES[kind]}


def progress_of(kind: str, payload: Mapping[str, Any]) -> float:
    """How far a job is that just told this stage or step, from 0 to 1."""
    before = 0.0
    for stage in STAGES[kind]:
        if stage.key == payload.get("stage"):
            return min(1.0, before + stage.weight * min(1.0, max(0.0, _inside(payload))))
        before += stage.weight
    return 0.0


def _inside(payload: Mapping[str, Any]) -> float:
    """How far the stage itself is: as it says, or by its steps where it has figures; preparation does not count."""
    inside, step, of = (payload.get(name) for name in ("inside", "step", "of"))
    if isinstance(inside, int | float):
        return float(inside)
    counts = isinstance(step, int) and isinstance(of, int) and of > 0 and "loss" in payload
    return step / of if counts else 0.0  # type: ignore[operator]
