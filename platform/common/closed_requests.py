"""Requests of the REST API that say what they do not know, whatever the view: what is sent to an action without a body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from common.closed import Closed

Method = TypeVar("Method", bound=Callable[..., Any])


class Nothing(Closed):
    """The body of an action that takes none: no bytes, or `{}`."""


def takes_no_body(*, responses: Any) -> Callable[[Method], Method]:
    """Say of a method of a view that it reads no body: the schema draws none, and `ClosedRequest` refuses any field."""

    def decorate(method: Method) -> Method:
        method.takes_no_body = True  # type: ignore[attr-defined]
        return extend_schema(request=None, responses=responses)(method)

    return decorate


class ClosedRequest:
    """Mixin of REST views: refuses what the method does not take, once the caller is known to be allowed to call it."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Check the caller, then what they sent."""
        super().initial(request, *args, **kwargs)  # type: ignore[misc]
        method = getattr(self, (request.method or "").lower(), None)
        if getattr(method, "takes_no_body", False):
            Nothing(data=request.data).is_valid(raise_exception=True)
