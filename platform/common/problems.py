"""Errors as answers: problem+json for programs (RFC 9457), a page or a toast for people. No internals leak."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.settings import api_settings

from common.errors import DomainError

log = logging.getLogger(__name__)
CONTENT_TYPE = "application/problem+json"
# Below it there are programs; /api/ itself is a page.
API_PREFIX = "/api/v1/"


def problem(
    status: int, code: str, detail: str, *, fields: dict[str, Any] | None = None, request_id: str = ""
) -> dict[str, Any]:
    """Return the body of a problem."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": code,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if fields:
        body["errors"] = [{"field": name, "message": str(message)} for name, message in fields.items()]
    if request_id:
        body["instance"] = f"urn:request:{request_id}"
    return body


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Map every error of the REST API to one shape."""
    from rest_framework.views import (
        exception_handler as drf_handler,  # imports the settings that name this module
    )

    request_id = (
        getattr(context.get("request"), "request_id", "") if context.get("request") is not None else ""
    )
    if isinstance(error, DomainError):
        reply = Response(
            problem(error.status, error.code, error.message, fields=error.fields, request_id=request_id),
            status=error.status,
        )
        if error.retry_after_s is not None:
            reply["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, RecursionError):
        reply = Response(problem(400, "parse_error", "The body is nested too deeply."), status=400)
    else:
        plain = drf_handler(error, context)
        if plain is None:
            return None
        reply = plain
        reply.data = problem(plain.status_code, *_words(error), fields=_fields(error), request_id=request_id)
    reply.content_type = CONTENT_TYPE
    return reply


def _words(error: Exception) -> tuple[str, str]:
    """Return the code and the sentence of a framework error."""
    if isinstance(error, exceptions.ValidationError):
        return "invalid", _("Some fields are not valid.")
    if isinstance(error, exceptions.NotAuthenticated):
        words = _(
            "You did not send an API token. Send the header “Authorization: Bearer <token>”, or sign in."
        )
        return str(error.default_code), words
    if isinstance(error, exceptions.APIException):
        return str(error.default_code), str(error.detail)
    if isinstance(error, Http404):
        return "not_found", _("There is no such thing here.")
    return "forbidden", _("You may not do this.")


def _fields(error: Exception) -> dict[str, Any]:
    """Flatten a validation error to one message a field."""
    if not isinstance(error, exceptions.ValidationError):
        return {}
    found: dict[str, list[str]] = {}
    for name, words in _leaves(error.detail):
        found.setdefault(name, []).append(words)
    return {name: " ".join(words) for name, words in found.items()}


def _leaves(detail: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the words of every message, however deep lists and mappings hold it."""
    if isinstance(detail, Mapping):
        for key, inner in detail.items():
            own = path if path and key == api_settings.NON_FIELD_ERRORS_KEY else (*path, str(key))
            yield from _leaves(inner, own)
    elif isinstance(detail, list | tuple):
        for number, inner in enumerate(detail):
            # Words in a list speak of the list's own field; anything else speaks of that item.
            own = (*path, str(number)) if isinstance(inner, Mapping | list | tuple) else path
            yield from _leaves(inner, own)
    else:
        yield ".".join(path) or api_settings.NON_FIELD_ERRORS_KEY, str(detail)


def wants_json(request: HttpRequest) -> bool:
    """Whether the caller is a program."""
    return request.path.startswith(API_PREFIX) or "application/json" in request.headers.get("Accept", "")


def answer(
    request: HttpRequest,
    status: int,
    code: str,
    detail: str,
    fields: dict[str, Any] | None = None,
    *,
    way: str = "/",
) -> HttpResponse:
    """Return a problem or a page, as the caller can read; the page's button goes the `way`."""
    if wants_json(request):
        body = problem(status, code, detail, fields=fields, request_id=getattr(request, "request_id", ""))
        return JsonResponse(body, status=status, content_type=CONTENT_TYPE)
    return render(
        request,
        "errors/problem.html",
        {
            "status": status,
            "code": code,
            "detail": detail,
            "fields": fields,
            "way": way,
            "layout": _layout(request, status),
        },
        status=status,
    )


def _layout(request: HttpRequest, status: int) -> str:
    """The console's frame for who is signed in; a bare page for others, and where the frame itself may be at fault."""
    return "base.html" if status < 500 and getattr(request, "caller", None) else "bare.html"


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """400."""
    return answer(request, 400, "bad_request", _("The request could not be read."))


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """403."""
    known = isinstance(exception, PermissionDenied) and str(exception)
    return answer(request, 403, "forbidden", str(exception) if known else _("You may not do this."))


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """404."""
    return answer(request, 404, "not_found", _("There is no such thing here."))


def server_error(request: HttpRequest) -> HttpResponse:
    """500."""
    return answer(
        request,
        500,
        "server_error",
        _("Something failed on our side. The request id helps to find it in the log."),
    )
