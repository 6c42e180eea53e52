"""Pages: the deployments, one deployment, a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import Role, role_required
from accounts.caller import Caller
from common.errors import DomainError, NotFound
from deployments import services
from deployments.domains import map_words, shown_domains
from deployments.forms import DTYPES, PRIORS, WEIGHTS, DeployForm, ScaleForm, UpdateForm
from deployments.models import Deployment
from deployments.selectors import (
    deployment_get,
    deployments_of,
    events_of,
    fit_of,
    is_silent,
    nodes_all,
    revisions_of,
    shown_replicas,
    standing_of,
)
from deployments.sentences import condition_sentence, error_words, event_lamp, event_sentence
from deployments.verdicts import list_verdict, verdict_of
from registry.models import ModelVersion
from registry.selectors import versions_of

ACTIONS: dict[str, tuple[Callable[..., Any], Promise]] = {
    "stop": (services.deployment_stop, gettext_lazy("It stops when its running answers are finished.")),
    "retry": (services.deployment_retry, gettext_lazy("Failed replicas are started again.")),
}
JUDGED = ("replicas", "weights", "resident_experts", "device_experts")
CONDITION_LAMPS = {"true": "ok", "false": "caution", "unknown": "unknown"}


def caller_of(request: HttpRequest) -> Caller:
    """Return who calls; the access rule has made sure that somebody does."""
    return request.caller  # type: ignore[attr-defined,no-any-return]


@role_required(Role.VIEWER)
@require_GET
def deployment_list(request: HttpRequest) -> HttpResponse:
    """What serves, and whether it does."""
    caller = caller_of(request)
    found = list(deployments_of(caller.team))
    context = {
        "rows": [{"deployment": one, "standing": standing_of(one), **_load(one)} for one in found],
        "verdict": list_verdict(found),
        "nodes": list(nodes_all()),
        "has_versions": versions_of(caller.team).exists(),
        "can_write": caller.role.covers(Role.EDITOR),
    }
    return render(request, "deployments/list.html", context)


@role_required(Role.VIEWER)
@require_GET
def deployment_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """What is desired beside what is observed."""
    caller = caller_of(request)
    return render(request, "deployments/detail.html", detail_context(deployment_get(caller.team, pk), caller))


def detail_context(deployment: Deployment, caller: Caller, form: UpdateForm | None = None) -> dict[str, Any]:
    """Everything that the page of a deployment shows."""
    standing = standing_of(deployment)
    can_write = caller.role.covers(Role.EDITOR)
    return {
        "deployment": deployment,
        "standing": standing,
        "verdict": verdict_of(deployment, standing),
        "replicas": [_replica_row(one) for one in shown_replicas(deployment)],
        "conditions": [
            {
                "lamp": _condition_lamp(one),
                "sentence": condition_sentence(one),
                "since": one["since"],
            }
            for one in deployment.conditions
        ],
        "events": [
            {"lamp": event_lamp(one), "sentence": event_sentence(one), "event": one}
            for one in events_of(deployment)
        ],
        "revisions": [{"one": one, "map": map_words(one.domains)} for one in revisions_of(deployment)[:50]],
        "domains": shown_domains(deployment),
        "map_words": map_words(deployment.domains),
        "precision": dict(DTYPES).get(str(deployment.settings.get("dtype")), "—"),
        "weights": dict(WEIGHTS)[deployment.settings.get("weights", "stored")],
        "prior": dict(PRIORS)[deployment.settings.get("prior_mode", "")],
        "is_observed": deployment.observed_generation == deployment.generation,
        "fit": fit_of(deployment.desired_version.spec, deployment.settings),
        "can_write": can_write,
        "form": form or (UpdateForm.for_deployment(deployment) if can_write else None),
        "scale_form": ScaleForm(initial={"replicas": deployment.desired_replicas}),
        "gpu_is_missing": _is_without_gpu(deployment),
        **_load(deployment),
    }


def _condition_lamp(condition: dict[str, Any]) -> str:
    if condition["status"] == "true" and condition["reason"] in ("starting", "adding", "draining"):
        return "busy"
    if condition["reason"] == "stopped":
        return "off"
    if condition["reason"] in ("failed", "nothing_ready"):
        return "danger"
    return CONDITION_LAMPS[condition["status"]]


def _replica_row(replica: Any) -> dict[str, Any]:
    silent = is_silent(replica)
    return {
        "replica": replica,
        "lamp": "unknown" if silent else replica.state,
        "word": _("silent") if silent else replica.get_state_display(),
        "reason": error_words(replica.error, replica.error_detail) if replica.error else "",
        "silent": silent,
    }


def _is_without_gpu(deployment: Deployment) -> bool:
    """Whether its engines say, all that say anything, that no GPU computes."""
    devices = {one.stats.get("device") for one in shown_replicas(deployment) if one.stats} - {None, ""}
    return devices == {"cpu"}


def _load(deployment: Deployment) -> dict[str, Any]:
    """What its engines carry now, by their last heartbeat."""
    engines = [one.stats for one in shown_replicas(deployment) if one.stats]
    return {
        name: sum(int(stats.get(name) or 0) for stats in engines)
        for name in ("running", "waiting", "rss_bytes", "kv_used", "kv_total")
    }


@role_required(Role.EDITOR)
@require_http_methods(["GET", "POST"])
def deployment_new(request: HttpRequest) -> HttpResponse:
    """Deploy a version."""
    caller = caller_of(request)
    versions = versions_of(caller.team)
    chosen = request.GET.get("version", "")
    initial = {"version": chosen if chosen.isdigit() else versions.values_list("pk", flat=True).first()}
    form = DeployForm(request.POST or None, team=caller.team, initial=initial)
    form.propose_map()
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            made = services.deployment_create(
                caller=caller, name=data["name"], version_id=data["version"].pk, replicas=data["replicas"],
                settings=form.settings(), confirm_domains=data["confirm_domains"], **form.chosen_map(),
            )  # fmt: skip
        except DomainError as error:
            form.show_error(error)
        else:
            return redirect("deployments:detail", made.pk)
    context = {
        "form": form, "fit": _fit(form, initial), "problem": _problem(form), "has_versions": versions.exists(),
        "proposed_for": form["version"].value(),
    }  # fmt: skip
    return render(request, "deployments/new.html", context, status=422 if form.errors else 200)


@role_required(Role.EDITOR)
@require_POST
def fit(request: HttpRequest) -> HttpResponse:
    """Would it fit? A fragment for the form, with the domain map proposed anew when another version was chosen."""
    caller = caller_of(request)
    form = DeployForm(request.POST, team=caller.team)
    form.is_valid()
    context: dict[str, Any] = {
        "fit": _fit(form, {}),
        "problem": _problem(form),
    }
    version = form.cleaned_data.get("version")
    if version and request.POST.get("proposed_for", "") != str(version.pk):
        context |= {"map_field": _proposed_map(caller, form, version), "proposed_for": version.pk}
    return render(request, "deployments/fit.html", context)


def _proposed_map(caller: Caller, form: DeployForm, version: ModelVersion) -> str:
    """The choice of a map as it suits a version: the one that it was tuned for, none if it is dense, else as it was."""
    kept = {} if version.is_dense else {"domain_map": form["domain_map"].value()}
    proposed = DeployForm(team=caller.team, initial={**kept, "version": version.pk})
    proposed.propose_map()
    return proposed["domain_map"].as_widget(attrs={"hx-swap-oob": "true"})


def _problem(form: DeployForm) -> str:
    """What is wrong with the fields that the fit is counted from, said beside it too."""
    return " ".join(str(one) for name in JUDGED for one in form.errors.get(name, ()))


def _fit(form: DeployForm, initial: dict[str, Any]) -> Any:
    """The memory of what the form says so far; None while it says too little."""
    if form.is_bound:
        found = getattr(form, "cleaned_data", {})
        version, replicas = found.get("version"), found.get("replicas", 1)
        settings = form.settings() if version else {}
    else:
        version = form.fields["version"].queryset.filter(pk=initial.get("version") or 0).first()  # type: ignore[attr-defined]
        settings, replicas = {}, 1
    try:
        return fit_of(version.spec, settings, replicas) if version else None
    except DomainError:
        return None


@role_required(Role.EDITOR)
@require_POST
def deployment_update(request: HttpRequest, pk: int) -> HttpResponse:
    """Want another version, other domains or other settings."""
    caller = caller_of(request)
    deployment = deployment_get(caller.team, pk)
    form = UpdateForm.for_deployment(deployment, request.POST)
    if form.is_valid():
        data = form.cleaned_data
        try:
            changed = services.deployment_update(
                caller=caller, deployment_id=pk, version_id=data["version"].pk, domain_map_id=form.chosen_map(),
                settings=form.settings(), note=data["note"], confirm_domains=data["confirm_domains"],
            )  # fmt: skip
        except DomainError as error:
            form.show_error(error)
        else:
            if changed.revision == deployment.revision:
                messages.info(request, _("Nothing is different from the revision that is wanted already."))
            else:
                messages.success(request, _("The new revision starts; the old one answers meanwhile."))
            return redirect("deployments:detail", pk)
    return render(request, "deployments/detail.html", detail_context(deployment, caller, form), status=422)


@role_required(Role.EDITOR)
@require_POST
def deployment_scale(request: HttpRequest, pk: int) -> HttpResponse:
    """Want another number of replicas."""
    form = ScaleForm(request.POST)
    replicas = form.cleaned_data["replicas"] if form.is_valid() else -1
    services.deployment_scale(caller=caller_of(request), deployment_id=pk, replicas=replicas)
    return redirect("deployments:detail", pk)


@role_required(Role.EDITOR)
@require_POST
def deployment_rollback(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    """Want an earlier revision again."""
    services.deployment_rollback(caller=caller_of(request), deployment_id=pk, revision=number)
    messages.success(request, _("Revision %(number)s is wanted again.") % {"number": number})
    return redirect("deployments:detail", pk)


@role_required(Role.EDITOR)
@require_POST
def deployment_action(request: HttpRequest, pk: int, action: str) -> HttpResponse:
    """Stop it, or try again what failed."""
    if action not in ACTIONS:
        raise NotFound(_("There is no such action."))
    act, words = ACTIONS[action]
    act(caller=caller_of(request), deployment_id=pk)
    messages.success(request, str(words))
    return redirect("deployments:detail", pk)


@role_required(Role.EDITOR)
@require_POST
def deployment_delete(request: HttpRequest, pk: int) -> HttpResponse:
    """Delete it; its history stays."""
    services.deployment_delete(caller=caller_of(request), deployment_id=pk)
    messages.success(
        request, _("The deployment is deleted; its engines stop when their answers are finished.")
    )
    return redirect("deployments:list")
