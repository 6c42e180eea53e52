"""Pages: models, one model, one version, uploads."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from accounts.access import Role, role_required
from accounts.caller import Caller
from common.errors import Conflict, Invalid
from common.uses import Kind, is_present
from registry import describe, services, sniff
from registry.block import diagram, shape_of
from registry.downloads import version_file_response
from registry.forms import AliasForm, ModelForm, NoteForm, UploadForm
from registry.models import Model, ModelVersion
from registry.moe_facts import moe_facts
from registry.operated import operated_report, operated_verdict
from registry.routed import routed_table
from registry.selectors import model_get, models_of, uploads_of, version_get

# What the import form offers first; the job that imports it knows where it lies.
BUILTIN = {"name": "smollm2-135m-instruct", "title": "SmolLM2-135M-Instruct"}
MAX_SHOWN = 200


def caller_of(request: HttpRequest) -> Caller:
    """Return who calls; the access rule has made sure that somebody does."""
    return request.caller  # type: ignore[attr-defined,no-any-return]


@role_required(Role.VIEWER)
@require_GET
def model_list(request: HttpRequest) -> HttpResponse:
    """Every model of the team, and what was uploaded but not imported yet."""
    team = caller_of(request).team
    models = list(models_of(team)[:MAX_SHOWN])
    context = {
        "models": [(model, _newest(model)) for model in models],
        "verdict": describe.list_verdict(models),
        "uploads": uploads_of(team).filter(kind="gguf")[:20],
        "chosen_upload": request.GET.get("upload", ""),
        "upload_form": UploadForm(),
        "builtin": BUILTIN,
        "can_write": caller_of(request).role.covers(Role.EDITOR),
    }
    return render(request, "registry/list.html", context)


@role_required(Role.VIEWER)
@require_GET
def model_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """One model: its versions, its aliases, what is said about it."""
    return _model_page(request, model_get(caller_of(request).team, pk))


def _model_page(request: HttpRequest, model: Model, form: ModelForm | None = None) -> HttpResponse:
    versions = list(model.versions.all())
    context = {
        "model": model,
        "versions": [
            (version, describe.version_facts(version), describe.how_made(version)) for version in versions
        ],
        "newest": _newest(model),
        "verdict": describe.version_verdict(versions[0]) if versions else None,
        "form": form or ModelForm(initial={name: getattr(model, name) for name in ModelForm.base_fields}),
        "alias_form": AliasForm(
            choices=[(version.pk, version.label) for version in versions], auto_id="alias_%s"
        ),
        "can_write": caller_of(request).role.covers(Role.EDITOR),
    }
    return render(request, "registry/detail.html", context, status=422 if form else 200)


@role_required(Role.EDITOR)
@require_POST
def model_edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Change what is said about a model."""
    form = ModelForm(request.POST)
    if form.is_valid():
        try:
            services.model_edit(caller=caller_of(request), model_id=pk, **form.cleaned_data)
        except (Invalid, Conflict) as error:
            form.add_error("name" if "name" in error.fields else None, error.message)
        else:
            messages.success(request, _("The model is described anew."))
            return redirect("registry:detail", pk)
    return _model_page(request, model_get(caller_of(request).team, pk), form)


@role_required(Role.EDITOR)
@require_POST
def alias_set(request: HttpRequest, pk: int) -> HttpResponse:
    """Point an alias at a version."""
    model = model_get(caller_of(request).team, pk)
    form = AliasForm(request.POST, choices=[(version.pk, version.label) for version in model.versions.all()])
    if not form.is_valid():
        raise Invalid(_("The alias was not set: give a word of small letters and choose a version."))
    alias = services.alias_set(
        caller=caller_of(request),
        model_id=pk,
        name=form.cleaned_data["name"],
        version_id=form.cleaned_data["version"],
    )
    words = {"alias": alias.name, "version": alias.version.label}
    messages.success(request, _("The alias %(alias)s points at %(version)s.") % words)
    return redirect("registry:detail", pk)


@role_required(Role.EDITOR)
@require_POST
def alias_remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Take an alias away."""
    services.alias_remove(caller=caller_of(request), model_id=pk, name=request.POST.get("name", ""))
    messages.success(request, _("The alias is gone; the version stays."))
    return redirect("registry:detail", pk)


@role_required(Role.VIEWER)
@require_GET
def version_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """One version: what it is, where it comes from, what it holds."""
    version = version_get(caller_of(request).team, pk)
    operated = operated_report(version.report)
    spec = describe.version_spec(version)
    context = {
        "version": version,
        "model": version.model,
        "spec": version.spec,
        "facts": describe.version_facts(version),
        "moe_facts": moe_facts(spec),
        "picture": diagram(shape_of(spec)) if spec.moe else None,
        "verdict": describe.version_verdict(version),
        "parts": describe.parts_of(version),
        "descent": describe.descent(version),
        "how_made": describe.how_made(version),
        "report": describe.report_rows(version),
        "report_domains": describe.report_domains(version),
        "report_verdict": describe.report_verdict(version),
        "operated": operated,
        "routed": routed_table(version.report),
        "operated_verdict": operated_verdict(operated) if operated else None,
        "files": sorted(version.files.items()),
        "is_there": _still_there(version),
        "children": version.children.select_related("model").order_by("id"),
        "note_form": NoteForm(initial={"note": version.note}),
        "can_write": caller_of(request).role.covers(Role.EDITOR),
    }
    return render(request, "registry/version.html", context)


def _still_there(version: ModelVersion) -> dict[Kind, bool]:
    """Which of the things that it was made with can still be looked at."""
    numbers: dict[Kind, Any] = {
        "layout": version.lineage.get("layout_id"),
        "domain_map": version.lineage.get("map_id"),
        "corpus": version.lineage.get("corpus_id"),
    }
    return {
        kind: is_present(kind, version.model.team_id, number)
        for kind, number in numbers.items()
        if number is not None
    }


@role_required(Role.VIEWER)
@require_GET
def version_file(request: HttpRequest, pk: int, name: str) -> FileResponse:
    """Download one file of a version."""
    return version_file_response(version_get(caller_of(request).team, pk), name)


@role_required(Role.EDITOR)
@require_POST
def version_note(request: HttpRequest, pk: int) -> HttpResponse:
    """Set a version's remark."""
    services.version_note_set(caller=caller_of(request), version_id=pk, note=request.POST.get("note", ""))
    messages.success(request, _("The note is saved."))
    return redirect("registry:version", pk)


@role_required(Role.EDITOR)
@require_POST
def version_verify(request: HttpRequest, pk: int) -> HttpResponse:
    """Hash every file of a version again."""
    version = services.version_verify(caller=caller_of(request), version_id=pk)
    if version.state == "ready":
        messages.success(request, _("Every byte is what it was."))
    else:
        messages.error(request, _("Bytes of this version have changed; nothing loads it any more."))
    return redirect("registry:version", pk)


@role_required(Role.EDITOR)
@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    """Take a model file; the import form opens with it."""
    form = UploadForm(request.POST, request.FILES)
    if not form.is_valid():
        raise Invalid(_("Choose a file to upload."), fields=_errors(form))
    file = form.cleaned_data["file"]
    sniff.must_be_whole_model(file.file, file.name)
    made = services.upload_create(
        caller=caller_of(request), name=file.name, source=file.file, expected_bytes=file.size,
        sha256=form.cleaned_data["sha256"] or None,
    )  # fmt: skip
    messages.success(request, _("%(name)s is uploaded; import it now.") % {"name": made.name})
    return redirect(f"{reverse('registry:list')}?upload={made.pk}")


@role_required(Role.EDITOR)
@require_POST
def upload_delete(request: HttpRequest, pk: int) -> HttpResponse:
    """Forget an upload."""
    services.upload_delete(caller=caller_of(request), upload_id=pk)
    messages.success(request, _("The upload is gone."))
    return redirect("registry:list")


def _newest(model: Model) -> object:
    return next(iter(model.versions.all()), None)


def _errors(form: object) -> dict[str, str]:
    return {name: " ".join(errors) for name, errors in form.errors.items()}  # type: ignore[attr-defined]
