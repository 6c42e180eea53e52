"""Requests of the REST API that say what they do not know: a parameter of the query, a field where no body is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.settings import api_settings

from common.closed import Closed
from common.errors import UnknownParameter
from common.figures import listed

MAX_NAME, MAX_NAMES = 40, 5
Method = TypeVar("Method", bound=Callable[..., Any])
Parameter = OpenApiParameter | type[serializers.Serializer]


class Nothing(Closed):
    """The body of an action that takes none: no bytes, or `{}`."""


def takes_no_body(*, responses: Any) -> Callable[[Method], Method]:
    """Say of a method of a view that it reads no body: the schema draws none, and `ClosedRequest` refuses any field."""

    def decorate(method: Method) -> Method:
        method.takes_no_body = True  # type: ignore[attr-defined]
        return extend_schema(request=None, responses=responses)(method)

    return decorate


def takes_query(
    *parameters: Parameter, methods: Sequence[str] = (), pages: bool = False
) -> Callable[[Method], Method]:
    """Say which parameters of the query a method of a view reads: for the schema, and for `ClosedRequest`.

    `methods`: the HTTP methods that read them, where it answers several. `pages`: it reads those of its pages too, as `list`
    does unsaid.
    """

    answered: Sequence[str | None] = methods or (None,)

    def decorate(method: Method) -> Method:
        method.query = {(one, name) for one in answered for name in _names(parameters)}  # type: ignore[attr-defined]
        method.has_pages = pages  # type: ignore[attr-defined]
        return extend_schema(parameters=[*parameters], methods=methods or None)(method)

    return decorate


def known_parameters(view: Any, http_method: str) -> set[str]:
    """Return the parameters that a view's method reads: those that it names, and in a list those of its pages."""
    method = getattr(view, http_method.lower(), None)
    named = {name for one, name in getattr(method, "query", ()) if one in (None, http_method)}
    if getattr(view, "action", None) != "list" and not getattr(method, "has_pages", False):
        return named
    return named | {one["name"] for one in view.paginator.get_schema_operation_parameters(view)}


class ClosedRequest:
    """Mixin of REST views: refuses what the method does not take, once the caller is known to be allowed to call it."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Check the caller, then what they sent."""
        super().initial(request, *args, **kwargs)  # type: ignore[misc]
        method = getattr(self, (request.method or "").lower(), None)
        if method is None or request.method == "OPTIONS":
            return
        refuse_unknown(request.query_params, known_parameters(self, request.method or ""))
        if getattr(method, "takes_no_body", False):
            Nothing(data=request.data).is_valid(raise_exception=True)


def refuse_unknown(sent: Iterable[str], known: Iterable[str]) -> None:
    """Raise UnknownParameter for the parameters that are not known, naming those that are."""
    # `format` chooses the renderer of any answer.
    unknown = sorted(set(sent) - set(known) - {api_settings.URL_FORMAT_OVERRIDE})
    if not unknown:
        return
    names = listed(f"“{name[:MAX_NAME]}”" for name in unknown[:MAX_NAMES])
    sentence = _("This address has no query parameter %(names)s; it takes none.")
    if known:
        sentence = _("This address has no query parameter %(names)s; it takes %(known)s.")
    words = sentence % {"names": names, "known": listed(sorted(known))}
    raise UnknownParameter(words, fields=dict.fromkeys(unknown, _("There is no such query parameter.")))


def _names(parameters: Iterable[Parameter]) -> set[str]:
    names: set[str] = set()
    for one in parameters:
        names |= {one.name} if isinstance(one, OpenApiParameter) else set(one().fields)
    return names
