"""Signing in and out: which browsers a person is known to use, and the lines of the audit log."""

from __future__ import annotations

import secrets

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from accounts.audit import audit_person, audit_record
from accounts.models import User
from accounts.throttle import folded, network_of

COOKIE = "turnout_browser"
COOKIE_LIFE_S = 180 * 24 * 3600
SALT = "accounts.browser"
UNKNOWN_NAME = "—"


def address_of(request: HttpRequest) -> str:
    """Return the client's address; uvicorn has put the one behind a trusted proxy there."""
    return str(request.META.get("REMOTE_ADDR", ""))


def known_browser(request: HttpRequest, name: str) -> str:
    """Return the number of a browser that has signed in under this name before, or ""."""
    try:
        kept = signing.loads(request.COOKIES.get(COOKIE, ""), salt=SALT, max_age=COOKIE_LIFE_S)
        number, known_name = str(kept["browser"]), kept["name"]
    except (signing.BadSignature, KeyError, TypeError):
        return ""
    return number if known_name == folded(name) else ""


def remember_browser(request: HttpRequest, response: HttpResponse, user: User) -> None:
    """Let this browser be known under the person's name from now on."""
    name = user.get_username()
    number = known_browser(request, name) or secrets.token_hex(16)
    response.set_cookie(
        COOKIE,
        signing.dumps({"browser": number, "name": folded(name)}, salt=SALT),
        max_age=COOKIE_LIFE_S,
        path=reverse("accounts:signin"),
        secure=bool(settings.SESSION_COOKIE_SECURE),
        httponly=True,
        samesite="Lax",
    )


def record_signin(user: User, address: str) -> None:
    """Write that a person signed in."""
    audit_person(user=user, action="signin", actor=user.get_username(), address=network_of(address))


def record_failure(name: str, address: str) -> None:
    """Write that a sign-in failed. A name that nobody has is left out: it may be a password in the wrong field."""
    user = User.objects.filter(username=name).first()
    if user is None:
        audit_record(
            caller=None,
            action="signin.failed",
            target=UNKNOWN_NAME,
            actor=UNKNOWN_NAME,
            address=network_of(address),
        )
    else:
        audit_person(user=user, action="signin.failed", actor=UNKNOWN_NAME, address=network_of(address))


def record_signout(user: User) -> None:
    """Write that a person signed out."""
    audit_person(user=user, action="signout", actor=user.get_username())
