"""Pages: layouts, the editor, its live answer, JSON in and out."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import Role, role_required
from accounts.caller import Caller
from common import figures
from common.errors import DomainError, Forbidden
from layouts import describe, services
from layouts.forms import LayoutForm, initial_of
from layouts.kind_actions import form_with_rows
from layouts.models import Layout
from layouts.selectors import layout_get, layouts_of, revision_get, revisions_of
from layouts.transfer import ImportForm, export_text
from moe_core.spec import LayoutSpec
from registry.models import ModelVersion
from registry.selectors import dense_versions, version_get

MAX_SHOWN = 200


def caller_of(request: HttpRequest) -> Caller:
    """Return who calls; the access rule has made sure that somebody does."""
    return request.caller  # type: ignore[attr-defined,no-any-return]


@role_required(Role.VIEWER)
@require_GET
def layout_list(request: HttpRequest) -> HttpResponse:
    """Every layout of the team."""
    return _list(request)


def _list(request: HttpRequest, import_form: ImportForm | None = None) -> HttpResponse:
    team = caller_of(request).team
    bases = list(dense_versions(team)[:MAX_SHOWN])
    rows = [
        (layout, describe.summary(layout.spec), _answer(layout)) for layout in layouts_of(team)[:MAX_SHOWN]
    ]
    context = {
        "rows": rows,
        "verdict": describe.list_verdict(rows[0][0] if rows else None, bool(bases)),
        "bases": bases,
        "import_form": import_form or ImportForm(bases=bases),
        "can_write": caller_of(request).role.covers(Role.EDITOR),
    }
    return render(request, "layouts/list.html", context, status=422 if import_form else 200)


@role_required(Role.VIEWER)
@require_http_methods(["GET", "POST"])
def layout_new(request: HttpRequest) -> HttpResponse:
    """The editor with a layout that is not saved yet."""
    caller = caller_of(request)
    bases = list(dense_versions(caller.team)[:MAX_SHOWN])
    if not bases:
        messages.warning(request, _("A layout needs a dense model to start from; import one first."))
        return redirect("registry:list")
    if request.POST.get("act"):
        return _editor(request, form_with_rows(request.POST, bases), bases, None)
    if request.method == "POST":
        form = LayoutForm(request.POST, bases=bases)
        saved = _saved(form, lambda data: services.layout_create(
            caller=caller, name=data["name"], base_version_id=data["base_version"], spec=form.spec(), note=data["note"]
        ))  # fmt: skip
        if saved:
            messages.success(request, _("%(name)s is saved.") % {"name": saved.name})
            return redirect("layouts:detail", saved.pk)
        return _editor(request, form, bases, None, status=422)
    base = next((one for one in bases if str(one.pk) == request.GET.get("base", "")), bases[0])
    form = LayoutForm(bases=bases, initial=_starting_point(base))
    return _editor(request, form, bases, None)


@role_required(Role.VIEWER)
@require_http_methods(["GET", "POST"])
def layout_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """The editor with a saved layout; a POST saves its next revision."""
    caller = caller_of(request)
    layout = layout_get(caller.team, pk)
    bases = list(dense_versions(caller.team)[:MAX_SHOWN])
    if request.POST.get("act"):
        return _editor(request, form_with_rows(request.POST, bases), bases, layout)
    if request.method == "POST":
        form = LayoutForm(request.POST, bases=bases)
        saved = _saved(form, lambda data: services.layout_revise(
            caller=caller, layout_id=pk, expected_revision=data["revision"] or 0, name=data["name"],
            base_version_id=data["base_version"], spec={**layout.spec, **form.spec()}, note=data["note"],
        ))  # fmt: skip
        if saved:
            messages.success(request, _("Revision r%(number)s is saved.") % {"number": saved.revision})
            return redirect("layouts:detail", pk)
        return _editor(request, form, bases, layout, status=422)
    shown = request.GET.get("revision", "")
    spec = revision_get(layout, int(shown)).spec if shown.isdigit() and len(shown) < 9 else layout.spec
    initial = initial_of(
        spec, width=layout.base_version.spec["intermediate_size"], name=layout.name,
        base_version=layout.base_version_id, revision=layout.revision,
    )  # fmt: skip
    return _editor(request, LayoutForm(bases=bases, initial=initial), bases, layout)


@role_required(Role.VIEWER)
@require_POST
def layout_preview(request: HttpRequest) -> HttpResponse:
    """The live answer to what is typed; nothing is saved."""
    form = LayoutForm(request.POST, bases=dense_versions(caller_of(request).team)[:MAX_SHOWN])
    return render(request, "layouts/answer.html", {**_answered(request, form), "is_fragment": True})


@role_required(Role.EDITOR)
@require_POST
def layout_delete(request: HttpRequest, pk: int) -> HttpResponse:
    """Remove a layout."""
    services.layout_delete(caller=caller_of(request), layout_id=pk)
    messages.success(request, _("The layout is removed; what was built with it stays."))
    return redirect("layouts:list")


@role_required(Role.VIEWER)
@require_GET
def layout_export(request: HttpRequest, pk: int) -> HttpResponse:
    """The layout as a JSON file."""
    layout = layout_get(caller_of(request).team, pk)
    response = HttpResponse(export_text(layout.name, layout.spec), content_type="application/json")
    name = slugify(layout.name) or "layout"
    response["Content-Disposition"] = f'attachment; filename="{name}-r{layout.revision}.json"'
    return response


@role_required(Role.EDITOR)
@require_POST
def layout_import(request: HttpRequest) -> HttpResponse:
    """Make a layout out of a JSON file."""
    caller = caller_of(request)
    form = ImportForm(request.POST, request.FILES, bases=dense_versions(caller.team)[:MAX_SHOWN])
    layout = _saved(form, lambda data: services.layout_create(
        caller=caller, name=data["layout"]["name"], base_version_id=data["base_version"], spec=data["layout"]["spec"],
        note=_("imported from JSON"),
    ))  # fmt: skip
    if layout is None:
        return _list(request, form)
    messages.success(request, _("%(name)s is imported.") % {"name": layout.name})
    return redirect("layouts:detail", layout.pk)


def _editor(
    request: HttpRequest,
    form: LayoutForm,
    bases: list[ModelVersion],
    layout: Layout | None,
    status: int = 200,
) -> HttpResponse:
    revisions = list(revisions_of(layout)[:50]) if layout else []
    older = [*[one.spec for one in revisions[1:]], None]
    context = {
        "form": form,
        "layout": layout,
        "revisions": [
            (one, describe.difference(before, one.spec))
            for one, before in zip(revisions, older, strict=False)
        ],
        "layer_counts": {str(base.pk): base.spec["num_hidden_layers"] for base in bases},
        "can_write": caller_of(request).role.covers(Role.EDITOR),
        **_answered(request, form),
    }
    return render(request, "layouts/editor.html", context, status=status)


def _answered(request: HttpRequest, form: LayoutForm) -> dict[str, Any]:
    """The answer to a form's values, or the reason why there is none."""
    if not form.is_bound:
        # What the page opens with is judged by the same rules as what is typed.
        data = {name: "" if value is None else value for name, value in form.initial.items()}
        form = LayoutForm({"name": "—", **data}, bases=_bases(form))
    form.fields["name"].required = False
    form.is_valid()
    # A name that is taken, or a revision that is stale, does not change what the layout costs.
    wrong = [(name, errors) for name, errors in form.errors.items() if name not in ("name", "__all__")]
    if wrong:
        told = [
            figures.named(form.fields[name].label, figures.sentences(*map(str, errors)))
            for name, errors in wrong
        ]
        return _unanswered(figures.sentences(*told))
    try:
        base = version_get(caller_of(request).team, form.cleaned_data["base_version"])
        answer = describe.answer_of(base, form.spec())
    except DomainError as error:
        return _unanswered(error.message)
    return {"answer": answer, "verdict": answer.verdict, "problem": ""}


def _unanswered(problem: str) -> dict[str, Any]:
    return {"answer": None, "verdict": describe.problem_verdict(problem), "problem": problem}


def _bases(form: LayoutForm) -> Any:
    chosen = [pk for pk, _name in form.fields["base_version"].choices]  # type: ignore[attr-defined]
    return ModelVersion.objects.filter(pk__in=chosen).select_related("model").order_by("-id")


def _saved(form: forms.Form, save: Any) -> Layout | None:
    """Save a valid form; what the service refuses becomes the form's error."""
    if not form.is_valid():
        return None
    try:
        return save(form.cleaned_data)  # type: ignore[no-any-return]
    except Forbidden:
        raise
    except DomainError as error:
        show_refusal(form, error)
        return None


def show_refusal(form: forms.Form, error: DomainError) -> None:
    """Put what a service refuses beside the fields that it is about."""
    for path, message in (error.fields or {"": error.message}).items():
        place = tuple(path.removeprefix("spec").strip(".").split("."))
        field = form.field_of(place) if isinstance(form, LayoutForm) else path
        form.add_error(field if field in form.fields else None, message)


def _starting_point(base: ModelVersion) -> dict[str, Any]:
    """Eight experts in every layer, two of them per token: Mixtral's shape."""
    spec = LayoutSpec(moe_layers=tuple(range(base.spec["num_hidden_layers"]))).model_dump(mode="json")
    name = _("%(model)s with 8 experts") % {"model": base.model.name}
    return initial_of(spec, width=base.spec["intermediate_size"], name=name, base_version=base.pk)


def _answer(layout: Layout) -> describe.Answer | None:
    try:
        return describe.answer_of(layout.base_version, layout.spec)
    except DomainError:
        return None
