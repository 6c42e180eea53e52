"""Pages: domain maps and their editor."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import Role, role_required
from accounts.caller import Caller
from common.errors import DomainError, Forbidden
from routing import services
from routing.describe import list_verdict, verdict_of
from routing.drafts import Draft, DraftDomain, draft_of_form, draft_of_map, mark
from routing.models import NUM_COLOURS, DomainMap
from routing.selectors import map_get, maps_of

MAX_SHOWN = 200


def caller_of(request: HttpRequest) -> Caller:
    """Return who calls; the access rule has made sure that somebody does."""
    return request.caller  # type: ignore[attr-defined,no-any-return]


@role_required(Role.VIEWER)
@require_GET
def map_list(request: HttpRequest) -> HttpResponse:
    """Every map of the team."""
    caller = caller_of(request)
    rows = [(one, verdict_of(draft_of_map(one))) for one in maps_of(caller.team)[:MAX_SHOWN]]
    context = {"rows": rows, "verdict": list_verdict(rows), "can_write": caller.role.covers(Role.EDITOR)}
    return render(request, "routing/list.html", context)


@role_required(Role.VIEWER)
@require_http_methods(["GET", "POST"])
def map_new(request: HttpRequest) -> HttpResponse:
    """The editor with a map that is not saved yet."""
    if request.method != "POST":
        start = Draft(name=_("Our domains"), domains=[DraftDomain()], general_experts=list(range(4, 8)))
        return _editor(request, start, None)
    draft = draft_of_form(request.POST)
    if _redraws(request, draft):
        return _editor(request, draft, None)
    return _save(
        request, draft, None,
        lambda: services.map_create(caller=caller_of(request), name=draft.name, plan=draft.plan()),
    )  # fmt: skip


@role_required(Role.VIEWER)
@require_http_methods(["GET", "POST"])
def map_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """The editor with a saved map; a POST saves its next revision."""
    domain_map = map_get(caller_of(request).team, pk)
    if request.method != "POST":
        return _editor(request, draft_of_map(domain_map), domain_map)
    draft = draft_of_form(request.POST)
    if _redraws(request, draft):
        return _editor(request, draft, domain_map)
    return _save(
        request, draft, domain_map,
        lambda: services.map_revise(
            caller=caller_of(request), map_id=pk, expected_revision=draft.revision, name=draft.name, plan=draft.plan()
        ),
    )  # fmt: skip


@role_required(Role.VIEWER)
@require_POST
def map_check(request: HttpRequest) -> HttpResponse:
    """The live verdict on what is typed; with `op` the board as well, with a row more or less."""
    draft = draft_of_form(request.POST)
    redrawn = _redraws(request, draft)
    context = {**_context(request, draft), "is_fragment": True, "redrawn": redrawn}
    return render(request, "routing/check.html", context)


@role_required(Role.EDITOR)
@require_POST
def map_example(request: HttpRequest) -> HttpResponse:
    """Make the example map."""
    made = services.map_create_example(caller=caller_of(request))
    messages.success(request, _("The example is there: four domains, and four general experts for the rest."))
    return redirect("routing:detail", made.pk)


@role_required(Role.EDITOR)
@require_POST
def map_delete(request: HttpRequest, pk: int) -> HttpResponse:
    """Remove a map."""
    services.map_delete(caller=caller_of(request), map_id=pk)
    messages.success(request, _("The map is removed; what was tuned with it stays."))
    return redirect("routing:list")


def _redraws(request: HttpRequest, draft: Draft) -> bool:
    """Add or remove a row, or fit all to the number of experts, as a button asks; whether the board is to be redrawn."""
    op = request.POST.get("op", "")
    if op == "add":
        used = {one.colour for one in draft.domains}
        colour = next((number for number in range(1, NUM_COLOURS + 1) if number not in used), 1)
        draft.domains.append(DraftDomain(colour=colour))
    elif op.startswith("remove-") and op[7:].isdigit() and int(op[7:]) < len(draft.domains):
        del draft.domains[int(op[7:])]
    elif op == "resize":
        draft.fit()
    return bool(op)


def _save(request: HttpRequest, draft: Draft, domain_map: DomainMap | None, save: Any) -> HttpResponse:
    caller_of(request).must_be(Role.EDITOR)
    verdict = verdict_of(draft)
    if verdict.problems:
        mark(draft, verdict.problems)
        messages.error(request, _("The map is not saved; what is missing stands beside its field."))
        return _editor(request, draft, domain_map, status=422)
    try:
        saved = save()
    except Forbidden:
        raise
    except DomainError as error:
        messages.error(request, error.message)
        draft.errors |= {name: words for name, words in error.fields.items() if name == "name"}
        return _editor(request, draft, domain_map, status=422)
    messages.success(request, _("Revision r%(number)s is saved.") % {"number": saved.revision})
    return redirect("routing:detail", saved.pk)


def _editor(
    request: HttpRequest, draft: Draft, domain_map: DomainMap | None, status: int = 200
) -> HttpResponse:
    context = {**_context(request, draft, is_sent=status == 422), "map": domain_map}
    return render(request, "routing/editor.html", context, status=status)


def _context(request: HttpRequest, draft: Draft, *, is_sent: bool = False) -> dict[str, Any]:
    return {
        "draft": draft,
        "verdict": verdict_of(draft, is_sent=is_sent),
        "is_sent": is_sent,
        "colours": range(1, NUM_COLOURS + 1),
        "can_write": caller_of(request).role.covers(Role.EDITOR),
    }
