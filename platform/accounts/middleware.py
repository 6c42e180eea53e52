"""Puts the caller on the request, and refuses every view that does not say who may call it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render, resolve_url
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from accounts.access import Access
from accounts.caller import Caller
from accounts.selectors import caller_of
from common.problems import answer, wants_json

log = logging.getLogger(__name__)
TEAM_KEY = "team_id"


class TeamAndAccessMiddleware:
    """`request.caller` is the signed-in person in their active team, or None."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.caller = SimpleLazyObject(lambda: session_caller(request))  # type: ignore[attr-defined]
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        """Decide before the view runs; None lets it run."""
        if is_rest(view):
            return None  # accounts.permissions decides, with the same default
        if request.resolver_match and "admin" in request.resolver_match.namespaces:
            return admin_gate(request)
        access: Access | None = getattr(view, "access", None) or getattr(
            getattr(view, "view_class", None), "access", None
        )
        if access is None:
            log.error("view %s declares no access and is refused", getattr(view, "__qualname__", view))
            return answer(request, 403, "forbidden", _("You may not do this."))
        if access.public:
            return None
        if not request.user.is_authenticated:
            return to_signin(request)
        if access.role is None:
            return None
        if not request.caller:  # type: ignore[attr-defined]
            return no_team(request)
        if not request.caller.role.covers(access.role):  # type: ignore[attr-defined]
            sentence = _("This needs the role %(needed)s; yours is %(role)s.")
            return answer(
                request,
                403,
                "forbidden",
                sentence % {"needed": access.role.label, "role": request.caller.role.label},
            )  # type: ignore[attr-defined]
        return None


def session_caller(request: HttpRequest) -> Caller | None:
    """Return the signed-in person as a caller in the team that the session names."""
    if not request.user.is_authenticated:
        return None
    return caller_of(request.user, request.session.get(TEAM_KEY))


def is_rest(view: Any) -> bool:
    """Whether Django REST framework will decide."""
    from rest_framework.views import APIView

    return isinstance(getattr(view, "cls", None), type) and issubclass(view.cls, APIView)


def admin_gate(request: HttpRequest) -> HttpResponse | None:
    """Django's admin is for staff; others never see that a page exists."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path(), resolve_url(settings.LOGIN_URL))
    return (
        None
        if request.user.is_staff
        else answer(request, 403, "not_staff", _("This part is for administrators of the installation."))
    )


def no_team(request: HttpRequest) -> HttpResponse:
    """Say to somebody who is in no team how to come into one."""
    if wants_json(request):
        return answer(
            request, 403, "no_team", _("You belong to no team yet; ask an admin of a team to invite you.")
        )
    return render(request, "accounts/no_team.html", status=403)


def to_signin(request: HttpRequest) -> HttpResponse:
    """Send a person to sign in and a program a 401."""
    if wants_json(request):
        return answer(request, 401, "not_signed_in", _("Sign in, or send an API token."))
    address = f"{resolve_url(settings.LOGIN_URL)}?{urlencode({'next': request.get_full_path()})}"
    if request.headers.get("HX-Request"):
        return HttpResponse(status=401, headers={"HX-Redirect": address})
    return redirect(address)
