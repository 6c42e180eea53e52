"""Pages: sign in and out, first set-up, the team and its tokens, the audit log."""

from __future__ import annotations

import logging
from typing import Any, cast

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from accounts import services, signin, throttle
from accounts.access import Access, Role, public, role_required, signed_in
from accounts.forms import MemberForm, SetupForm, TokenForm
from accounts.middleware import TEAM_KEY
from accounts.models import AuditEvent, User
from accounts.selectors import memberships_of, tokens_of
from common.errors import Busy, DomainError, NotFound
from common.problems import answer, wants_json

log = logging.getLogger(__name__)


class SignIn(LoginView):
    """Sign in; a password is looked at only while there are tries left (accounts.throttle)."""

    access = Access(public=True)
    template_name = "accounts/signin.html"
    redirect_authenticated_user = True
    tries: list[throttle.Try]

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Take a try, then let Django look at the password."""
        name = request.POST.get("username", "")
        if not name.strip():
            self.tries = []
            return super().post(request, *args, **kwargs)
        browser = signin.known_browser(request, name)
        self.tries = throttle.tries_of(name, signin.address_of(request), browser)
        try:
            throttle.take(self.tries)
        except Busy as error:
            return self.held_back(name, error)
        return super().post(request, *args, **kwargs)

    def held_back(self, name: str, error: Busy) -> HttpResponse:
        """Say how long to wait; whether the password was right is not looked at."""
        log.warning(
            "a sign-in from %s is held back for %s s", signin.address_of(self.request), error.retry_after_s
        )
        if wants_json(self.request):
            response = answer(self.request, error.status, error.code, error.message)
        else:
            form = self.get_form_class()(self.request, initial={"username": name[:150]})
            response = render(
                self.request,
                self.template_name,
                self.get_context_data(form=form, held_back=error.message),
                status=error.status,
            )
        response["Retry-After"] = str(error.retry_after_s)
        return response

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        """Start the session."""
        throttle.give_back(self.tries)
        user = cast(User, form.get_user())
        response = super().form_valid(form)
        signin.record_signin(user, signin.address_of(self.request))
        signin.remember_browser(self.request, response, user)
        return response

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        """Show the form again."""
        if self.tries:
            signin.record_failure(form.data.get("username", ""), signin.address_of(self.request))
        return super().form_invalid(form)


class SignOut(LogoutView):
    """Sign out (POST only)."""

    access = Access()
    next_page = "accounts:signin"

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """End the session."""
        signin.record_signout(cast(User, request.user))
        return super().post(request, *args, **kwargs)


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
