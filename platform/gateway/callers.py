"""Who calls: a bearer token, or a signed-in person of the same origin (the playground)."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from channels.db import database_sync_to_async
from django.contrib.auth import get_user
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from accounts.middleware import TEAM_KEY
from accounts.models import User
from accounts.selectors import caller_of
from accounts.tokens import token_digest
from gateway.database import Database, Remembered
from gateway.errors import ApiError, forbidden, unauthenticated
from gateway.http import Call

# A revoked token works for at most this long; streams look again as often.
TOKEN_LIFE_S = 2.0
SESSION_CONCURRENT = 8
MAX_SECRET = 512
FIND_HOLDER = """
SELECT t.id, t.team_id, t.scopes, t.max_concurrent, t.monthly_token_limit, team.slug AS team
  FROM accounts_apitoken t
  JOIN accounts_user u ON u.id = t.created_by_id AND u.is_active
  JOIN accounts_membership m ON m.user_id = u.id AND m.team_id = t.team_id
  JOIN accounts_team team ON team.id = t.team_id
 WHERE t.digest = %(digest)s AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())
"""
NOTE_USE = "UPDATE accounts_apitoken SET last_used_at = now() WHERE id = %(id)s"


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who may infer, in a team."""

    key: str
    team_id: int
    team: str
    token_id: int | None
    max_concurrent: int
    monthly_token_limit: int | None = None


class Callers:
    """Finds who calls, remembering tokens for two seconds."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._tokens: Remembered[Principal | ApiError] = Remembered(TOKEN_LIFE_S)

    async def find(self, call: Call) -> Principal:
        """Return the caller.

        Raises:
            ApiError: 401 or 403.
        """
        header = call.header(b"authorization")
        if header:
            word, _space, secret = header.partition(" ")
            if word.lower() != "bearer" or not secret.strip() or len(header) > MAX_SECRET:
                raise unauthenticated("Send the header “Authorization: Bearer <key>”.")
            return await self.of_digest(token_digest(secret.strip()))
        if call.header(b"cookie"):
            return await self.of_session(call)
        raise unauthenticated("You did not send an API key. Send the header “Authorization: Bearer <key>”.")

    async def of_digest(self, digest: str) -> Principal:
        """Return the holder of a token."""
        found = await self._tokens.get(digest, lambda: self._look_up(digest))
        if isinstance(found, ApiError):
            raise found
        return found

    async def still(self, call: Call, principal: Principal) -> bool:
        """Whether the caller may go on, for streams that run for long."""
        try:
            return (await self.find(call)).team_id == principal.team_id
        except ApiError as error:
            # A database that is away has revoked nothing.
            return error.status >= 500

    async def _look_up(self, digest: str) -> Principal | ApiError:
        rows = await self.database.rows(FIND_HOLDER, {"digest": digest})
        if not rows:
            return unauthenticated("This API key is unknown, expired or revoked.")
        row = rows[0]
        if "infer" not in row["scopes"]:
            return forbidden("This API key lacks the scope “infer”; make one with it under API tokens.")
        await self.database.rows(NOTE_USE, {"id": row["id"]})
        return Principal(
            f"token:{row['id']}", row["team_id"], row["team"], row["id"], row["max_concurrent"],
            row["monthly_token_limit"],
        )  # fmt: skip

    async def of_session(self, call: Call) -> Principal:
        """Return the signed-in person; the browser must show that the page is ours."""
        found = await session_principal(call)
        if found is None:
            raise unauthenticated("Sign in, or send the header “Authorization: Bearer <key>”.")
        return found


@database_sync_to_async
def session_principal(call: Call) -> Principal | None:
    """Read the session as Django does, with its CSRF and Host checks."""
    request = ASGIRequest(dict(call.scope), BytesIO())
    try:
        request.get_host()
    except DisallowedHost:
        raise ApiError(400, "This host name is not served here.", code="bad_host") from None
    SessionMiddleware(_nothing).process_request(request)
    user = get_user(request)
    if not isinstance(user, User) or not user.is_active:
        return None
    guard = CsrfViewMiddleware(_nothing)
    guard.process_request(request)
    if guard.process_view(request, _nothing, (), {}) is not None:
        raise forbidden("The CSRF token is missing or wrong; load the page again.")
    caller = caller_of(user, request.session.get(TEAM_KEY))
    if caller is None:
        return None
    return Principal(f"user:{user.pk}", caller.team.pk, caller.team.slug, None, SESSION_CONCURRENT)


def _nothing(*_arguments: object, **_named: object) -> HttpResponse:
    return HttpResponse()
