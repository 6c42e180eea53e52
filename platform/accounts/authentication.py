"""How a REST call says who it is: a bearer token, or the console's session with its CSRF token."""

from __future__ import annotations

from typing import Any

from django.db.models.functions import Now
from django.utils.translation import gettext as _
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts.models import ApiToken, User
from accounts.selectors import caller_of, caller_of_token, token_find

MAX_HEADER = 512


class ApiTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer tt_…`"""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        """Return the token's maker and the token, or raise 401 for a wrong one."""
        header = request.headers.get("Authorization", "")
        if not header:
            return None
        word, _space, secret = header.partition(" ")
        if word.lower() != "bearer" or not secret or len(header) > MAX_HEADER:
            raise AuthenticationFailed(_("Send the header “Authorization: Bearer <token>”."))
        token = token_find(secret.strip())
        caller = caller_of_token(token) if token else None
        if token is None or caller is None:
            raise AuthenticationFailed(_("This token is unknown, expired or revoked."))
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=Now())
        request._request.caller = caller  # type: ignore[attr-defined]
        return caller.user, token  # type: ignore[return-value]

    def authenticate_header(self, request: Request) -> str:
        """Make the refusal a 401 with the scheme named."""
        return 'Bearer realm="turnout"'


class ConsoleSessionAuthentication(SessionAuthentication):
    """The signed-in browser, in its active team; unsafe methods need the CSRF token."""

    def authenticate(self, request: Request) -> Any:
        """Return the person, with `caller` set by the middleware."""
        found = super().authenticate(request)
        if found is not None and not getattr(request._request, "caller", None):
            request._request.caller = caller_of(found[0])  # type: ignore[attr-defined]
        return found


class ApiTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """How the schema names the token."""

    target_class = "accounts.authentication.ApiTokenAuthentication"
    name = "apiToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the OpenAPI security scheme."""
        return {"type": "http", "scheme": "bearer"}


class ConsoleSessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """How the schema names the session cookie."""

    target_class = "accounts.authentication.ConsoleSessionAuthentication"
    name = "consoleSession"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the OpenAPI security scheme."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}
