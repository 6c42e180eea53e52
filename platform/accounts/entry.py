"""Pages through which people come in: sign in and out, passwords, the first admin's set-up, invitations."""

from __future__ import annotations

import logging
from typing import Any, cast

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm
from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeView
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse_lazy
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from accounts import services, signin, throttle
from accounts.access import Access, Role, public
from accounts.audit import audit_person
from accounts.forms import AccountForm, SetupForm
from accounts.invitations import invitation_accept, invitation_accept_new, invitation_open
from accounts.middleware import TEAM_KEY
from accounts.models import Invitation, Membership, User
from accounts.selectors import memberships_of
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
        user = form.get_user()
        response = super().form_valid(form)
        signin.record_signin(user, signin.address_of(self.request))
        signin.remember_browser(self.request, response, user)
        return response

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        """Show the form again."""
        if self.tries:
            signin.record_failure(form.data.get("username", ""), signin.address_of(self.request))
        return super().form_invalid(form)


class PasswordChange(PasswordChangeView):
    """Choose another password; all other sessions of the person end."""

    access = Access()
    template_name = "accounts/password.html"
    success_url = reverse_lazy("console:overview")

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Look at the old password while there are tries left."""
        form = self.get_form()
        tries = throttle.tries_of_account(cast(User, request.user).pk)
        if not request.POST.get("old_password"):
            return self.form_invalid(form)
        throttle.take(tries)
        is_valid = form.is_valid()
        if "old_password" not in form.errors:
            throttle.give_back(tries)
        return self.form_valid(form) if is_valid else self.form_invalid(form)

    def form_valid(self, form: PasswordChangeForm) -> HttpResponse:
        """Keep the new password and this session."""
        user = cast(User, self.request.user)
        with transaction.atomic():
            response = super().form_valid(form)
            audit_person(user=user, action="account.password_changed", actor=user.get_username())
        messages.success(self.request, _("The password is changed; other sessions have ended."))
        return response


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
            show_error(form, error)
        else:
            return entered(request, user)
    return render(request, "accounts/setup.html", {"form": form}, status=422 if form.errors else 200)


@public
@require_http_methods(["GET", "HEAD", "POST"])
def join(request: HttpRequest, token: str) -> HttpResponse:
    """Come into a team by an invitation: signed in as who one is, or with a new account."""
    invitation = invitation_open(token)
    user = request.user if request.user.is_authenticated else None
    form = AccountForm(request.POST or None) if user is None else None
    if request.method == "POST":
        try:
            if user is not None:
                return joined(request, invitation_accept(secret=token, user=user))
            if form is not None and form.is_valid():
                membership = invitation_accept_new(secret=token, **form.cleaned_data)
                return joined(request, membership, new=True)
        except DomainError as error:
            if form is None or not error.fields:
                raise
            show_error(form, error)
    return render(
        request,
        "accounts/join.html",
        join_context(invitation, user, form),
        status=422 if form and form.errors else 200,
    )


def join_context(invitation: Invitation, user: User | None, form: AccountForm | None) -> dict[str, Any]:
    """What the page of an invitation shows."""
    is_member = user is not None and memberships_of(user).filter(team=invitation.team).exists()
    return {
        "invitation": invitation,
        "form": form,
        "is_member": is_member,
        "role": Role(invitation.role).label,
    }


def joined(request: HttpRequest, membership: Membership, *, new: bool = False) -> HttpResponse:
    """Go on in the team."""
    response = entered(request, membership.user) if new else redirect("console:overview")
    request.session[TEAM_KEY] = membership.team_id
    messages.success(request, _("You are in the team %(team)s now.") % {"team": membership.team})
    return response


def entered(request: HttpRequest, user: User) -> HttpResponse:
    """Start the session of an account that was just made."""
    login(request, user)
    signin.record_signin(user, signin.address_of(request))
    response = redirect("console:overview")
    signin.remember_browser(request, response, user)
    return response


def show_error(form: AccountForm | SetupForm, error: DomainError) -> None:
    """Put a refusal beside the field that it speaks of."""
    for name, message in (error.fields or {"__all__": error.message}).items():
        form.add_error(name if name in form.fields else None, message)
