"""Pages: sign in and out, first set-up, the team and its tokens, the audit log."""

from __future__ import annotations

from typing import cast

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.views import LoginView, LogoutView
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from accounts import services
from accounts.access import Access, Role, public, role_required, signed_in
from accounts.forms import MemberForm, SetupForm, TokenForm
from accounts.middleware import TEAM_KEY
from accounts.models import AuditEvent, User
from accounts.selectors import memberships_of, tokens_of
from common.errors import DomainError, NotFound


class SignIn(LoginView):
    """Sign in."""

    access = Access(public=True)
    template_name = "accounts/signin.html"
    redirect_authenticated_user = True


class SignOut(LogoutView):
    """Sign out (POST only)."""

    access = Access()
    next_page = "accounts:signin"


@public
@require_http_methods(["GET", "POST"])
def setup(request: HttpRequest, token: str) -> HttpResponse:
    """Make the first admin by the one-time link."""
    if not services.setup_token_valid(token):
        raise NotFound(_("This set-up link has been used or has expired."))
    form = SetupForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            user = services.first_admin_create(token=token, **form.cleaned_data)
        except DomainError as error:
            for name, message in (error.fields or {"__all__": error.message}).items():
                form.add_error(name if name in form.fields else None, message)
        else:
            login(request, user)
            return redirect("console:overview")
    return render(request, "accounts/setup.html", {"form": form}, status=422 if form.errors else 200)


@signed_in
@require_POST
def team_switch(request: HttpRequest) -> HttpResponse:
    """Choose the active team."""
    wanted = request.POST.get("team", "")
    if not memberships_of(cast(User, request.user)).filter(team_id=int(wanted) if wanted.isdigit() else 0).exists():
        raise NotFound(_("There is no such team."))
    request.session[TEAM_KEY] = int(wanted)
    return redirect("console:overview")


@role_required(Role.VIEWER)
def tokens(request: HttpRequest) -> HttpResponse:
    """List tokens; make one. A fresh secret is shown on this answer and never again."""
    form = TokenForm(request.POST or None)
    secret = None
    if request.method == "POST" and form.is_valid():
        try:
            _token, secret = services.api_token_create(caller=request.caller, **form.cleaned_data)
            form = TokenForm()
        except DomainError as error:
            form.add_error(None, error.message)
    context = {"form": form, "tokens": tokens_of(request.caller.team), "secret": secret}
    return render(request, "accounts/tokens.html", context, status=422 if form.errors else 200)


@role_required(Role.VIEWER)
@require_POST
def token_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """End a token."""
    services.api_token_revoke(caller=request.caller, token_id=pk)
    messages.success(request, _("The token is revoked."))
    return redirect("accounts:tokens")


@role_required(Role.VIEWER)
def team(request: HttpRequest) -> HttpResponse:
    """Show the members; admins set roles."""
    form = MemberForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            services.member_set(caller=request.caller, username=data["username"], role=Role(data["role"]))
            messages.success(request, _("The role is set."))
            return redirect("accounts:team")
        except DomainError as error:
            form.add_error(None, error.message)
    members = request.caller.team.memberships.select_related("user").order_by("id")
    return render(
        request, "accounts/team.html", {"form": form, "members": members}, status=422 if form.errors else 200
    )


@role_required(Role.ADMIN)
@require_POST
def member_remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Take a person out of the team."""
    services.member_remove(caller=request.caller, membership_id=pk)
    return redirect("accounts:team")


@role_required(Role.ADMIN)
def audit(request: HttpRequest) -> HttpResponse:
    """Show the team's audit log, newest first."""
    events = AuditEvent.objects.filter(team_id=request.caller.team.pk).order_by("-id")
    page = Paginator(events, 50).get_page(request.GET.get("page"))
    return render(request, "accounts/audit.html", {"page": page})
