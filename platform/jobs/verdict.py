"""The first sentence of a job's page: is it getting better, and is that real?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from common import figures
from common.verdict import Verdict
from jobs.choices import JobKind, JobState
from jobs.models import MAX_ATTEMPTS, Job, JobEvent
from jobs.operated import operated_of
from jobs.reasons import error_told
from jobs.report import AFTER, BEFORE, CONTROL, Report
from jobs.stages import titles_of
from registry.measured import measured_verdict
from registry.operated import operated_verdict
from registry.tuned import loss_sentence, tuned_verdict


def verdict_of(job: Job, report: Report, latest: Mapping[str, Any]) -> Verdict:
    """Answer the page's question as far as it can be answered now; `latest` are the figures of the last step."""
    match job.state:
        case JobState.QUEUED:
            return _waiting(job)
        case JobState.RUNNING | JobState.PAUSING | JobState.CANCELLING:
            return _working(job, report, latest)
        case JobState.PAUSED:
            resumed = (
                _("Resume it: it goes on from its last checkpoint.")
                if job.checkpoints.exists()
                else _("Resume it: it has no checkpoint, so it begins anew.")
            )
            return Verdict("caution", _("Paused."), resumed)
        case JobState.CANCELLED:
            return Verdict(
                "off",
                _("Cancelled; nothing was registered."),
                _("It can be tried again from its last checkpoint.")
                if job.checkpoints.exists()
                else _("It can be tried again; it has no checkpoint, so it begins anew."),
            )
        case JobState.SUCCEEDED:
            return _done(job, report)
    return _failed(job)


def _waiting(job: Job) -> Verdict:
    if job.attempts:
        sentence = _("Waiting for attempt %(attempt)s of %(of)s.")
        words = {"attempt": job.attempts + 1, "of": MAX_ATTEMPTS}
        return Verdict("caution", sentence % words, error_told(job.kind, last_reason(job)))
    return Verdict("off", _("Waiting for a worker."), _("It starts as soon as one has room."))


def _working(job: Job, report: Report, latest: Mapping[str, Any]) -> Verdict:
    if job.state == JobState.PAUSING:
        return Verdict("busy", _("Pausing after this step."), _("A checkpoint is made first."))
    if job.state == JobState.CANCELLING:
        return Verdict("busy", _("Cancelling after this step."), _("Nothing will be registered."))
    if job.kind == JobKind.TUNE and report.is_measured:
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
    loss = loss_sentence(report.of(BEFORE), report.of(AFTER))
    return Verdict("busy", figures.sentences(loss, reach), rest)


def _done(job: Job, report: Report) -> Verdict:
    if job.kind == JobKind.OPERATE:
        return _changed(job)
    if job.kind == JobKind.IMPORT or not report.is_measured:
        name = str(job.result_version) if job.result_version else str(job)
        return Verdict(
            "ok", _("%(version)s is in the registry.") % {"version": name}, _("Every file has its SHA-256.")
        )
    return tuned_verdict(report.of(BEFORE), report.of(AFTER), report.of(CONTROL))


def _changed(job: Job) -> Verdict:
    """What an operation on experts did to the loss, where it was measured."""
    words = {"version": str(job.result_version) if job.result_version else str(job)}
    found = operated_verdict(operated_of(job))
    if job.is_measuring:
        return measured_verdict(job.result.get("operation") or {})
    if job.is_preview:
        return Verdict(found.state, found.strong, _("This was a preview: nothing was kept."))
    return Verdict(found.state, _("%(version)s is in the registry.") % words, found.strong)


def _failed(job: Job) -> Verdict:
    if job.state == JobState.QUARANTINED:
        strong = ngettext(
            "Set aside after %(count)s attempt.", "Set aside after %(count)s attempts.", job.attempts
        ) % {"count": job.attempts}
        return Verdict("danger", strong, job.problem + " " + _("The end of its log is below."))
    return Verdict("danger", _("Failed."), job.problem)


def last_reason(job: Job) -> str:
    """Why the job is in its present state, when somebody said so."""
    event = JobEvent.objects.filter(job=job, kind="state").order_by("-seq").first()
    return str(event.payload.get("reason", "")) if event else ""


def stage_title(job: Job) -> str:
    """The present stage in words."""
    return str(titles_of(job.kind).get(job.stage, _("starting")))
