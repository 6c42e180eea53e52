"""The first sentence of a job's page: is it getting better, and is that real?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common import figures
from common.told import told
from jobs.choices import JobKind, JobState
from jobs.models import MAX_ATTEMPTS, Job, JobEvent
from jobs.operated import operated_of
from jobs.report import AFTER, BEFORE, CONTROL, REAL_LEAD, Report
from jobs.stages import STAGES

# A loss that rises by less is not felt.
UNFELT_NATS = 0.01


@dataclass(frozen=True, slots=True)
class Verdict:
    """A lamp, the strong part of the sentence and the rest."""

    state: str
    strong: str
    rest: str = ""


def verdict_of(job: Job, report: Report, latest: Mapping[str, Any]) -> Verdict:
    """Answer the page's question as far as it can be answered now; `latest` are the figures of the last step."""
    match job.state:
        case JobState.QUEUED:
            return _waiting(job)
        case JobState.RUNNING | JobState.PAUSING | JobState.CANCELLING:
            return _working(job, report, latest)
        case JobState.PAUSED:
            return Verdict("caution", _("Paused."), _("Resume it: it goes on from its last checkpoint."))
        case JobState.CANCELLED:
            return Verdict(
                "off",
                _("Cancelled; nothing was registered."),
                _("It can be tried again from its last checkpoint."),
            )
        case JobState.SUCCEEDED:
            return _done(job, report)
    return _failed(job)


def _waiting(job: Job) -> Verdict:
    if job.attempts:
        words = {"attempt": job.attempts + 1, "of": MAX_ATTEMPTS, "reason": last_reason(job)}
        reason = str(words["reason"] or "")
        sentence = _("Waiting for attempt %(attempt)s of %(of)s.") % words
        return Verdict("caution", sentence, _(reason) if reason else "")
    return Verdict("off", _("Waiting for a worker."), _("It starts as soon as one has room."))


def _working(job: Job, report: Report, latest: Mapping[str, Any]) -> Verdict:
    if job.state == JobState.PAUSING:
        return Verdict("busy", _("Pausing after this step."), _("A checkpoint is made first."))
    if job.state == JobState.CANCELLING:
        return Verdict("busy", _("Cancelling after this step."), _("Nothing will be registered."))
    if job.kind == JobKind.TUNE and report.loss_change is not None:
        return _so_far(report)
    strong = _("At work: %(stage)s.") % {"stage": stage_title(job)}
    words = {
        "loss": figures.number(report.figure(BEFORE, "loss"), 3),
        "before": figures.percent(report.figure(BEFORE, "mapped_share")),
        "now": figures.percent(latest.get("mapped_share")),
    }
    if job.stage == "route" and latest.get("stage") == "route" and latest.get("mapped_share") is not None:
        rest = _(
            "%(now)s of the tokens of the last batch reached their own experts, against %(before)s before tuning."
        )
        return Verdict("busy", strong, rest % words)
    if report.figure(BEFORE, "loss") is not None:
        rest = _("Held-out loss before tuning is %(loss)s; what comes after is measured later.")
        return Verdict("busy", strong, rest % words)
    return Verdict("busy", strong)


def _so_far(report: Report) -> Verdict:
    share = {"share": figures.percent(report.figure(AFTER, "mapped_share"))}
    reach = _("%(share)s of the tokens reach their own experts.") % share
    rest = _("The control with a deranged map still has to show whether that is real.")
    return Verdict("busy", f"{_loss(report)} {reach}", rest)


def _done(job: Job, report: Report) -> Verdict:
    if job.kind == JobKind.OPERATE:
        return _changed(job)
    if job.kind == JobKind.IMPORT or report.loss_change is None:
        name = str(job.result_version) if job.result_version else str(job)
        return Verdict(
            "ok", _("%(version)s is in the registry.") % {"version": name}, _("Every file has its SHA-256.")
        )
    return Verdict(_lamp(report), _by_domain(report), _is_it_real(report))


def _changed(job: Job) -> Verdict:
    """What an operation on experts did to the loss, where it was measured."""
    operated = operated_of(job)
    words = {"version": str(job.result_version) if job.result_version else str(job)}
    strong = _("%(version)s is in the registry.") % words
    changes = [row.change for row in operated.domains if row.change is not None] if operated else []
    if not changes:
        return Verdict("ok", strong, _("Its loss was not measured; name logs to have it measured."))
    worst = max(changes)
    if worst <= UNFELT_NATS:
        return Verdict("ok", strong, _("No domain's loss rose by more than 0.01 nats a token."))
    rest = _("The domain that loses most loses %(worst)s nats a token.") % {"worst": figures.number(worst, 3)}
    return Verdict("caution", strong, rest)


def _by_domain(report: Report) -> str:
    """How many domains improve, then the loss as a whole."""
    known = [row for row in report.domains if row.verdict]
    better, worse = (sum(row.verdict == word for row in known) for word in ("better", "worse"))
    words = {"better": better, "of": len(known), "worse": worse}
    if not known:
        return _loss(report)
    if better == len(known):
        sentence = ngettext("The one domain improves.", "All %(of)s domains improve.", len(known))
    elif worse:
        sentence = _("%(better)s of %(of)s domains improve, %(worse)s get worse.")
    else:
        sentence = _("%(better)s of %(of)s domains improve, none gets worse.")
    return f"{sentence % words} {_loss(report)}"


def _is_it_real(report: Report) -> str:
    words = {
        "vio_before": figures.number(report.figure(BEFORE, "max_vio"), 2),
        "vio_after": figures.number(report.figure(AFTER, "max_vio"), 2),
        "share": figures.percent(report.figure(AFTER, "mapped_share")),
        "control": figures.percent(report.figure(CONTROL, "mapped_share")),
    }
    vio = _("MaxVio went from %(vio_before)s to %(vio_after)s.") % words
    if report.lead is None:
        return vio + " " + _("No control was run, so it is not known whether the map did this.")
    if report.lead >= REAL_LEAD:
        real = _(
            "%(share)s of the tokens reach their own experts, %(control)s with a deranged map: the map did this."
        )
    else:
        real = _(
            "%(share)s of the tokens reach their own experts, but %(control)s do with a deranged map as well."
        )
    return vio + " " + real % words


def _lamp(report: Report) -> str:
    fell = (report.loss_change or 0.0) < 0
    return "ok" if fell and (report.lead is None or report.lead >= REAL_LEAD) else "caution"


def _loss(report: Report) -> str:
    share = report.loss_change or 0.0
    words = {"share": figures.percent(abs(share), 1)}
    sentence = _("Held-out loss fell by %(share)s.") if share < 0 else _("Held-out loss rose by %(share)s.")
    return sentence % words


def _failed(job: Job) -> Verdict:
    if job.state == JobState.QUARANTINED:
        strong = _("Set aside after %(count)s attempts.") % {"count": job.attempts}
        return Verdict("danger", strong, told(job.error) + " " + _("The end of its log is below."))
    return Verdict("danger", _("Failed."), told(job.error))


def last_reason(job: Job) -> str:
    """Why the job is in its present state, when somebody said so."""
    event = JobEvent.objects.filter(job=job, kind="state").order_by("-seq").first()
    return str(event.payload.get("reason", "")) if event else ""


def stage_title(job: Job) -> str:
    """The present stage in words."""
    found = next((stage.title for stage in STAGES[job.kind] if stage.key == job.stage), None)
    return str(found) if found is not None else _("starting")
