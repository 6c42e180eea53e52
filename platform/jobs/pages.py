"""What the page of one job shows: stations, recipe, lineage, times."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from common import figures
from common.spec_fields import Part, default_of
from common.told import Names, line_told
from common.uses import Kind, is_present
from jobs.by_stage import num_turns, stages_of
from jobs.choices import HELD, JobKind, JobState
from jobs.forms import KEPT
from jobs.models import Job, JobEvent
from jobs.operation_recipe import operation_recipe
from jobs.stages import titles_of
from jobs.tune_fields import DEEP, PARTS, PRECISION, TEACHING
from moe_core.spec import TuneSpec
from registry.moe_facts import said
from registry.operated import OPERATIONS

ETA_FROM = 0.08
# Its stages take about the shares of the time that `jobs.stages` gives them, and tell how far they are inside. The
# stages of an import tell nothing, and how long an operation takes is its parts' affair.
FORESEEN = (JobKind.TUNE,)


def stations_of(job: Job) -> list[dict[str, Any]]:
    """The stages as stations; the one in question is lit, or marked where it failed."""
    keys = [stage.key for stage in stages_of(job)]
    at = keys.index(job.stage) if job.stage in keys else -1
    return [
        {
            "key": stage.key,
            "title": stage.title,
            "note": _note(job, stage.key),
            "state": _state(job, place, at),
        }
        for place, stage in enumerate(stages_of(job))
    ]


def _state(job: Job, place: int, at: int) -> str:
    if job.state == JobState.SUCCEEDED or place < at:
        return "done"
    if place > at:
        return "next"
    return "failed" if job.state in (JobState.FAILED, JobState.QUARANTINED) else "now"


def _note(job: Job, key: str) -> str:
    """What a station is about, in a few words."""
    tune = job.inputs.get("tune", {})
    if key == "specialise":
        count = tune["specialise_steps"] * num_turns(tune)
        return ngettext("%(count)s step", "%(count)s steps", count) % {"count": figures.number(count)}
    if key in ("route", "control"):
        count = tune["route_steps"]
        return ngettext("%(count)s step", "%(count)s steps", count) % {"count": figures.number(count)}
    if key == "upcycle" and tune.get("layout"):
        words = {"experts": tune["layout"]["num_experts"], "layers": len(tune["layout"]["moe_layers"])}
        sentence = ngettext(
            "%(experts)s experts in %(layers)s layer",
            "%(experts)s experts in %(layers)s layers",
            words["layers"],
        )
        return sentence % words
    if key == "register" and job.result_version:
        return job.result_version.label
    return ""


def recipe_of(job: Job) -> list[tuple[str, str]]:
    """The essentials of what was asked, as pairs of words."""
    if job.kind == JobKind.IMPORT:
        return [
            (_("Source"), job.inputs.get("source", "—")),
            (_("Licence"), job.inputs.get("licence") or "—"),
            *([(_("Kept in"), str(KEPT[job.inputs["dtype"]]))] if "dtype" in job.inputs else []),
            *_where(job),
        ]
    if job.kind == JobKind.OPERATE:
        return [(_("Operation"), job.kind_words), *operation_recipe(job), *_where(job)]
    tune = job.inputs["tune"]
    return [
        (_("Learning rate, experts"), f"{tune['specialise_learning_rate']:g}"),
        (_("Learning rate, router"), f"{tune['route_learning_rate']:g}"),
        (_("Tokens a batch"), figures.number(tune["tokens_per_batch"])),
        (_("Window"), _("%(count)s tokens") % {"count": figures.number(tune["window_tokens"])}),
        (_("Balance weight"), f"{tune['routing']['balance_weight']:g}"),
        (_("Label weight"), f"{tune['routing']['label_weight']:g}"),
        *([(_("Temperature"), f"{tune['layout'].get('temperature', 1.0):g}")] if tune["layout"] else []),
        (_("Precision"), str(PRECISION[tune["dtype"]])),
        (_("Seed"), str(tune["seed"])),
        (_("Threads"), str(tune["num_threads"])),
        *_unusual(tune),
        *_where(job),
    ]


def _unusual(tune: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was set otherwise than TuneSpec would by itself, of the fields behind the form's disclosures."""
    for part in (TEACHING, DEEP):
        for name, ask in part.asks.items():
            if name in tune and tune[name] != default_of(TuneSpec, name):
                yield str(ask.label), said(ask, tune[name])
    for name, part in PARTS.items():
        if value := tune.get(name):
            yield str(part.asks[part.lead].label), _led(part, value)


def _led(part: Part, value: dict[str, Any]) -> str:
    """A schedule or a room in a line: its lead, then every figure under its name."""
    lead = said(part.asks[part.lead], value[part.lead])
    shown = (
        figures.named(ask.label, said(ask, value[name]))
        for name, ask in part.asks.items()
        if name != part.lead and value.get(name) is not None
    )
    return ("；" if figures.is_chinese() else "; ").join([lead, *shown])


def _where(job: Job) -> list[tuple[str, str]]:
    node = job.holder.split("/")[0] if job.holder else ""
    rows = [(_("Runs on"), node)] if node and job.state in HELD else []
    return [*rows, (_("Attempt"), str(job.attempts))] if job.attempts else rows


LINEAGE: dict[Kind, tuple[str, Promise]] = {
    "layout": ("layouts:detail", gettext_lazy("layout")),
    "domain_map": ("routing:detail", gettext_lazy("domains")),
    "corpus": ("corpora:detail", gettext_lazy("logs")),
}


def lineage_of(job: Job) -> dict[str, Any]:
    """What leads into the job and what comes out of it."""
    parents = []
    if job.base_version is not None:
        parents.append(
            _node(str(job.base_version), _("base"), reverse("registry:version", args=[job.base_version_id]))
        )
    elif job.inputs.get("source"):
        parents.append(_node(str(job.inputs["source"]), _("source")))
    parents += [
        _node(other["label"], _beside(job), reverse("registry:version", args=[other["id"]]))
        for other in job.inputs.get("others") or []
    ]
    for key, (url_name, note) in LINEAGE.items():
        part = job.inputs.get(key)
        if part:
            revision = f" r{part['revision']}" if "revision" in part else ""
            is_there = is_present(key, job.team_id, part["id"])
            url = reverse(url_name, args=[part["id"]]) if is_there else ""
            parents.append(
                _node(f"{part['name']}{revision}", str(note) if is_there else _("deleted since"), url)
            )
    version = job.result_version
    child = (
        _node(str(version), _("registered"), reverse("registry:version", args=[version.pk]))
        if version
        else _node(_("no version"), _("it only measures"))
        if job.is_measuring
        else _node(_("no version"), _("a preview keeps nothing"))
        if job.is_preview
        else _node(_("next version"), _("when it ends well"))
    )
    return {"parents": parents, "child": child, "is_made": version is not None}


def _beside(job: Job) -> str:
    """What the other versions of an operation are there for."""
    return _("measured beside it") if job.is_measuring else _("composed with it")


def _node(title: str, note: str, url: str = "") -> dict[str, str]:
    return {"title": title if len(title) <= 30 else f"{title[:29]}…", "note": note, "url": url}


def took_s(job: Job) -> float | None:
    """How long the job has been at it."""
    if job.started_at is None:
        return None
    return ((job.ended_at or timezone.now()) - job.started_at).total_seconds()


def time_left_s(job: Job) -> float | None:
    """About how long it still takes, once enough is done to say."""
    spent = took_s(job)
    if spent is None or job.state != JobState.RUNNING or job.progress < ETA_FROM or job.kind not in FORESEEN:
        return None
    return spent * (1 - job.progress) / job.progress


def log_lines(job: Job) -> list[tuple[datetime | None, str]]:
    """The whole kept log with the end that only the row holds."""
    kept = [
        (event.at, line_told(str(event.payload.get("text", "")), _names(job)))
        for event in JobEvent.objects.filter(job=job, kind="log").order_by("seq")
    ]
    texts = {text for _at, text in kept[-400:]}
    return kept + [(None, line) for line in tail_lines(job) if line not in texts]


def tail_lines(job: Job) -> list[str]:
    """The end of the log as the worker last saw it, in the reader's language where a line is one of ours."""
    return [line_told(line, _names(job)) for line in job.log_tail.splitlines()]


def _names(job: Job) -> Names:
    return {"operation": OPERATIONS, "stage": titles_of(job.kind)}
