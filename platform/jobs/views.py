"""Pages: the jobs, one job, import, build and tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import Role, role_required
from accounts.caller import Caller
from common.errors import DomainError, NotFound
from common.told import LISTS, templates
from jobs import pages, services
from jobs.by_stage import latest_own, learning_plan, stage_figures
from jobs.choices import ENDED, OPEN, JobKind, JobState
from jobs.coverage_of_form import coverage_for
from jobs.foreseen import foreseen_of
from jobs.forms import BUILTIN, SOURCES, UPLOAD, ImportForm, show_error
from jobs.models import Job
from jobs.operated import PART_WORDS, operated_of
from jobs.operation_form import OperateForm
from jobs.operation_forms import FORMS
from jobs.overview import list_verdict
from jobs.report import domains_of, name_of, report_of
from jobs.selectors import job_get, jobs_of
from jobs.tune_form import TuneForm
from jobs.verdict import stage_title, verdict_of
from registry.measured import measured_report
from registry.operated import OPERATIONS, Operated
from registry.routed import routed_table

PER_PAGE = 25
FILTERS: dict[str, tuple[Promise, tuple[JobState, ...]]] = {
    "open": (pgettext_lazy("jobs", "Open"), OPEN),
    "ended": (gettext_lazy("Ended"), ENDED),
}
ACTIONS: dict[str, tuple[Callable[..., Job], Promise]] = {
    "cancel": (services.job_cancel, gettext_lazy("The job stops after this step.")),
    "pause": (services.job_pause, gettext_lazy("The job halts after this step; its state is kept.")),
    "resume": (services.job_resume, gettext_lazy("The job goes on from its last checkpoint.")),
    "retry": (services.job_retry, gettext_lazy("The job is tried again.")),
    "clone": (services.job_clone, gettext_lazy("The same job waits again, under a new number.")),
}


def caller_of(request: HttpRequest) -> Caller:
    """Return who calls; the access rule has made sure that somebody does."""
    return request.caller  # type: ignore[attr-defined,no-any-return]


@role_required(Role.VIEWER)
@require_GET
def job_list(request: HttpRequest) -> HttpResponse:
    """The team's jobs, newest first."""
    caller = caller_of(request)
    jobs = jobs_of(caller.team)
    chosen = request.GET.get("show", "")
    page = Paginator(_filtered(jobs, chosen), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "page": page,
        "rows": [{"job": job, "stage": stage_title(job), "took_s": pages.took_s(job)} for job in page],
        "filters": [("", _("All"), chosen not in FILTERS), *_filter_links(chosen)],
        "verdict": list_verdict(caller.team),
        "is_moving": any(not job.has_ended for job in page),
        "can_write": caller.role.covers(Role.EDITOR),
    }
    return render(request, "jobs/list.html", context)


def _filtered(jobs: QuerySet[Job], chosen: str) -> QuerySet[Job]:
    return jobs.filter(state__in=FILTERS[chosen][1]) if chosen in FILTERS else jobs


def _filter_links(chosen: str) -> list[tuple[str, str, bool]]:
    return [(key, str(label), key == chosen) for key, (label, _states) in FILTERS.items()]


@role_required(Role.VIEWER)
@require_GET
def job_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """One job; its script keeps it moving."""
    caller = caller_of(request)
    return render(request, "jobs/detail.html", {**job_context(job_get(caller.team, pk)), **_rights(caller)})


def job_context(job: Job) -> dict[str, Any]:
    """Everything that the page of a job shows."""
    report, left = report_of(job), pages.time_left_s(job)
    by_stage = stage_figures(job) if job.kind == JobKind.TUNE else []
    own = latest_own(by_stage)
    latest = own.figures if own else {}
    plan = learning_plan(job)
    return {
        "job": job,
        "report": report,
        "operated": operated_of(job),
        "measured": measured_report(job.result.get("operation") or {}),
        "routed": routed_table(job.result.get("tuning") or job.result.get("operation") or {}),
        "verdict": verdict_of(job, report, latest),
        "stations": pages.stations_of(job),
        "stage_title": stage_title(job),
        "latest": latest,
        "latest_stage": own.title if own else "",
        "by_stage": by_stage,
        "part_words": PART_WORDS,
        "said_words": templates(),
        "said_lists": LISTS,
        "operation_words": OPERATIONS,
        "tail": pages.tail_lines(job),
        "plan": plan,
        "has_control": any(one["key"] == "control" for one in plan),
        "recipe": pages.recipe_of(job),
        "lineage": pages.lineage_of(job),
        "took_s": pages.took_s(job),
        "time_left_s": left,
        "domains": [
            {
                "code": one["code"],
                "name": name_of(one),
                "colour": job.inputs["domain_map"]["colours"].get(one["code"]),
            }
            for one in domains_of(job)
        ],
        "last_checkpoint": job.checkpoints.first(),
    }


def _rights(caller: Caller) -> dict[str, bool]:
    return {"can_write": caller.role.covers(Role.EDITOR)}


@role_required(Role.VIEWER)
@require_GET
def job_log(request: HttpRequest, pk: int) -> HttpResponse:
    """The log as a text file."""
    job = job_get(caller_of(request).team, pk)
    lines = (
        f"{at.isoformat(timespec='seconds') if at else '-':<25} {text}\n" for at, text in pages.log_lines(job)
    )
    headers = {"Content-Disposition": f'attachment; filename="job-{job.pk}.log"'}
    return HttpResponse("".join(lines), content_type="text/plain; charset=utf-8", headers=headers)


@role_required(Role.EDITOR)
@require_POST
def job_action(request: HttpRequest, pk: int, action: str) -> HttpResponse:
    """Cancel, pause, resume, retry or clone a job."""
    if action not in ACTIONS:
        raise NotFound(_("There is no such action."))
    act, words = ACTIONS[action]
    job = act(caller=caller_of(request), job_id=pk)
    messages.success(request, str(words))
    return redirect("jobs:detail", job.pk)


@role_required(Role.EDITOR)
@require_http_methods(["GET", "POST"])
def import_model(request: HttpRequest) -> HttpResponse:
    """Start the import of a model."""
    caller = caller_of(request)
    source, chosen = request.GET.get("source", ""), request.GET.get("upload", "")
    if source not in SOURCES:
        source = UPLOAD if chosen else BUILTIN
    name = "SmolLM2-135M-Instruct" if source == BUILTIN else ""
    initial = {"source": source, "upload": chosen, "name": name}
    form = ImportForm(request.POST or None, team=caller.team, initial=initial)
    if request.method == "POST" and form.is_valid():
        job = _submit(caller, form, "import")
        if job is not None:
            return redirect("jobs:detail", job.pk)
    return render(request, "jobs/import.html", {"form": form}, status=422 if form.errors else 200)


@role_required(Role.EDITOR)
@require_http_methods(["GET", "POST"])
def tune(request: HttpRequest) -> HttpResponse:
    """Build a mixture and tune it."""
    caller = caller_of(request)
    chosen = {name: request.GET[name] for name in TuneForm.PARTS if request.GET.get(name, "").isdigit()}
    form = TuneForm(request.POST or None, team=caller.team, initial=chosen)
    if request.method == "POST" and form.is_valid():
        job = _submit(caller, form, "tune", name=form.cleaned_data["name"])
        if job is not None:
            return redirect("jobs:detail", job.pk)
    context = {"form": form, "missing": form.missing, "coverage": coverage_for(caller, form)}
    return render(request, "jobs/tune.html", context, status=422 if form.errors else 200)


@role_required(Role.EDITOR)
@require_GET
def tune_coverage(request: HttpRequest) -> HttpResponse:
    """The rows per domain of the chosen logs beside the chosen map, while the form is filled in."""
    caller = caller_of(request)
    form = TuneForm(request.GET, team=caller.team)
    form.is_valid()
    return render(request, "jobs/coverage.html", {"coverage": coverage_for(caller, form)})


@role_required(Role.EDITOR)
@require_http_methods(["GET", "POST"])
def operate(request: HttpRequest) -> HttpResponse:
    """Change the experts of a version: one form for each operation."""
    caller = caller_of(request)
    kind = request.GET.get("operation", "grow")
    if kind not in FORMS:
        raise NotFound(_("There is no such operation."))
    form = FORMS[kind](request.POST or None, team=caller.team, initial=_operation_initial(request, kind))
    if request.method == "POST" and form.is_valid():
        preview = request.POST.get("act") == "preview"
        job = _submit(caller, form, "operate", name=form.cleaned_data["name"], preview=preview)
        if job is not None:
            return redirect("jobs:detail", job.pk)
    context = {
        "form": form,
        "forms": FORMS.values(),
        "version": form.initial.get("model_version", ""),
        "foreseen": foreseen_of(form),
        "previewed": _previewed(request, kind),
    }
    return render(request, "jobs/operate.html", context, status=422 if form.errors else 200)


def _operation_initial(request: HttpRequest, kind: str) -> dict[str, Any]:
    """What the form begins with: the version that was chosen, or what another job was asked."""
    version, job = request.GET.get("model_version", ""), _job_before(request, kind)
    if job is not None:
        return FORMS[kind].initial_of(job.spec)
    return {"model_version": version} if version.isdigit() else {}


def _job_before(request: HttpRequest, kind: str) -> Job | None:
    """The job of the same operation that the address names."""
    number = request.GET.get("job", "")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        return None
    job = job_get(caller_of(request).team, int(number))
    is_same = job.kind == JobKind.OPERATE and job.inputs["operate"]["operation"]["kind"] == kind
    return job if is_same else None


def _previewed(request: HttpRequest, kind: str) -> tuple[Job, Operated] | None:
    """The preview that the address names, with what it measured; it stands beside the form that confirms it."""
    job = _job_before(request, kind)
    found = operated_of(job) if job is not None and job.is_preview else None
    return None if job is None or found is None else (job, found)


@role_required(Role.EDITOR)
@require_POST
def operate_foreseen(request: HttpRequest) -> HttpResponse:
    """What the operation would make of the version, while its form is filled in."""
    kind = request.GET.get("operation", "")
    if kind not in FORMS:
        raise NotFound(_("There is no such operation."))
    form = FORMS[kind](request.POST, team=caller_of(request).team)
    return render(request, "jobs/foreseen.html", {"foreseen": foreseen_of(form)})


def _submit(
    caller: Caller, form: ImportForm | TuneForm | OperateForm, kind: str, name: str = "", **how: bool
) -> Job | None:
    """Submit what a form asks for; complaints go into the form."""
    try:
        return services.job_submit(caller=caller, kind=kind, spec=form.spec(**how), name=name)
    except DomainError as error:
        show_error(form, error)
        return None
