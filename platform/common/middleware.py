"""Small middlewares that every answer passes."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from http import HTTPStatus

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import is_valid_path
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

from common.errors import DomainError
from common.problems import answer, wants_json

GetResponse = Callable[[HttpRequest], HttpResponse]

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
# Django's own admin sets inline style attributes on a few widgets.
ADMIN_POLICY = CONTENT_SECURITY_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")


def request_identity(get_response: GetResponse) -> GetResponse:
    """Give each request an id of ours, and check its Host even where nothing else would."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.request_id = secrets.token_hex(8)  # type: ignore[attr-defined]
        request.get_host()
        response = get_response(request)
        response["X-Request-Id"] = request.request_id  # type: ignore[attr-defined]
        return response

    return middleware


def security_headers(get_response: GetResponse) -> GetResponse:
    """A strict Content-Security-Policy on every page, and no caching of what belongs to a person."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        policy = ADMIN_POLICY if request.path.startswith("/admin/") else CONTENT_SECURITY_POLICY
        response.headers.setdefault("Content-Security-Policy", policy)
        if not request.path.startswith("/static/"):
            response.headers.setdefault("Cache-Control", "private, no-store")
        return response

    return middleware


def pages_of_actions(get_response: GetResponse) -> GetResponse:
    """Show a person who reloads or goes back to an address that only takes POST the way to the page that it belongs to."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        asks_for_page = request.method in ("GET", "HEAD") and not wants_json(request)
        if response.status_code != HTTPStatus.METHOD_NOT_ALLOWED or not asks_for_page:
            return response
        # Not a redirect: nothing was found at this address, and a stranger must not read success out of it.
        page = answer(
            request, response.status_code, "method_not_allowed",
            _("Nothing is shown at this address: it only takes what a form sends."), way=page_above(request.path_info),
        )  # fmt: skip
        page["Allow"] = response["Allow"]
        return page

    return middleware


def page_above(path: str) -> str:
    """Return the nearest address above a path that is one of ours."""
    parts = path.strip("/").split("/")[:-1]
    while parts and not is_valid_path(f"/{'/'.join(parts)}/"):
        parts.pop()
    return f"/{'/'.join(parts)}/" if parts else "/"


def domain_errors(get_response: GetResponse) -> GetResponse:
    """Show a DomainError of a page as a toast where the person came from, or as a problem."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    def process_exception(request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, DomainError):
            return None
        back = request.headers.get("Referer", "")
        from_here = url_has_allowed_host_and_scheme(back, allowed_hosts={request.get_host()})
        if (
            request.method == "POST"
            and from_here
            and not wants_json(request)
            and not request.headers.get("HX-Request")
        ):
            messages.error(request, error.message)
            return HttpResponseRedirect(back)
        response = answer(request, error.status, error.code, error.message, error.fields)
        if error.retry_after_s is not None:
            response["Retry-After"] = str(error.retry_after_s)
        return response

    middleware.process_exception = process_exception  # type: ignore[attr-defined]
    return middleware
