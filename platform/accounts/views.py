"""Pages of those who are in: the team with its invitations, its tokens, its audit log."""

from __future__ import annotations

from typing import cast

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from accounts import services
from accounts.access import Role, role_required, signed_in
from accounts.forms import InviteForm, RoleForm, TokenForm
from accounts.invitations import invitation_create, invitation_revoke
from accounts.members import member_remove, member_role_set
from accounts.middleware import TEAM_KEY
from accounts.models import User
from accounts.selectors import audit_of, invitations_of, members_of, memberships_of, tokens_of
from common.errors import DomainError, Invalid, NotFound
from common.figures import listed

SHOWN_INVITATIONS = 50
MAX_WORDS = 200


@signed_in
@require_POST
def team_switch(request: HttpRequest) -> HttpResponse:
    """Choose the active team."""
    wanted = request.POST.get("team", "")
    if (
        not memberships_of(cast(User, request.user))
        .filter(team_id=int(wanted) if wanted.isdigit() else 0)
        .exists()
    ):
        raise NotFound(_("There is no such team."))
    request.session[TEAM_KEY] = int(wanted)
    return redirect("console:overview")


@role_required(Role.VIEWER)
def tokens(request: HttpRequest) -> HttpResponse:
    """List tokens; make one. A fresh secret is shown on this answer and never again."""
    form = TokenForm(request.POST or None, role=request.caller.role)
    secret = None
    if request.method == "POST" and form.is_valid():
        try:
            _token, secret = services.api_token_create(caller=request.caller, **form.cleaned_data)
            form = TokenForm(role=request.caller.role)
        except DomainError as error:
            form.add_error(None, error.message)
    context = {
        "form": form,
        "tokens": tokens_of(request.caller.team),
        "secret": secret,
        "is_admin": request.caller.role.covers(Role.ADMIN),
    }
    return render(request, "accounts/tokens.html", context, status=422 if form.errors else 200)


@role_required(Role.VIEWER)
@require_POST
def token_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """End a token."""
    services.api_token_revoke(caller=request.caller, token_id=pk)
    messages.success(request, _("The token is revoked."))
    return redirect("accounts:tokens")


@role_required(Role.VIEWER)
@require_http_methods(["GET", "HEAD", "POST"])
def team(request: HttpRequest) -> HttpResponse:
    """Show the members; admins invite. The link of a fresh invitation is shown on this answer and never again."""
    caller, link = request.caller, ""
    form = InviteForm(request.POST or None)
    if request.method == "POST":
        caller.must_be(Role.ADMIN)
        if form.is_valid():
            try:
                _invitation, secret = invitation_create(caller=caller, **form.cleaned_data)
                link = request.build_absolute_uri(reverse("accounts:join", args=[secret]))
                form = InviteForm()
            except DomainError as error:
                form.add_error(None, error.message)
    is_admin = caller.role.covers(Role.ADMIN)
    context = {
        "form": form,
        "link": link,
        "members": members_of(caller.team),
        "roles": Role.choices,
        "is_admin": is_admin,
        "invitations": invitations_of(caller.team)[:SHOWN_INVITATIONS] if is_admin else [],
    }
    return render(request, "accounts/team.html", context, status=422 if form.errors else 200)


@role_required(Role.ADMIN)
@require_POST
def invitation_end(request: HttpRequest, pk: int) -> HttpResponse:
    """Revoke an invitation."""
    invitation_revoke(caller=request.caller, invitation_id=pk)
    messages.success(request, _("The invitation is revoked: its link opens nothing any more."))
    return redirect("accounts:team")


@role_required(Role.ADMIN)
@require_POST
def member_role(request: HttpRequest, pk: int) -> HttpResponse:
    """Give a member another role."""
    form = RoleForm(request.POST)
    if not form.is_valid():
        raise Invalid(_("Choose one of the roles %(roles)s.") % {"roles": listed(Role.values)})
    member_role_set(caller=request.caller, membership_id=pk, role=Role(form.cleaned_data["role"]))
    messages.success(request, _("The role is set."))
    return redirect("accounts:team")


@role_required(Role.VIEWER)
@require_POST
def member_end(request: HttpRequest, pk: int) -> HttpResponse:
    """Take a person out of the team, or leave it."""
    member_remove(caller=request.caller, membership_id=pk)
    return redirect("accounts:team")


@role_required(Role.ADMIN)
def audit(request: HttpRequest) -> HttpResponse:
    """Show the team's audit log, newest first; `q` is looked for in all of it."""
    words = request.GET.get("q", "").replace("\0", "").strip()[:MAX_WORDS]
    page = Paginator(audit_of(request.caller.team, words=words), 50).get_page(request.GET.get("page"))
    return render(request, "accounts/audit.html", {"page": page, "words": words})
