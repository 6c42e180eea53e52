"""Every refusal as JSON: `{"error": {"code", "message", "param"}}`; `param` is the field of the body at fault, or null."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from moe_core.errors import EngineBusy, EngineError, PromptTooLong, SpecError
from moe_core.strict_json import StrictJsonError

logger = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """A request that is not served, with its HTTP status."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


def response_of(refusal: Refusal) -> web.Response:
    """The refusal as an HTTP response."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    body = {"error": {"code": refusal.code, "message": str(refusal), "param": refusal.param}}
    return web.json_response(body, status=refusal.status, headers=headers)


def refusal_of(error: Exception) -> Refusal | None:
    """What an error means to the client; None for one that nobody foresaw."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, StrictJsonError):
        return Refusal(413 if error.code == "too_large" else 400, error.code, str(error))
    if isinstance(error, PromptTooLong):
        return Refusal(400, "prompt_too_long", str(error), param="prompt")
    if isinstance(error, SpecError):
        place = error.complaints[0][0]
        return Refusal(400, "invalid_request", str(error), param=str(place[0]) if place else None)
    if isinstance(error, EngineBusy):
        return Refusal(429, "engine_busy", str(error), retry_after_s=1)
    if isinstance(error, EngineError):
        return Refusal(503, "unavailable", str(error), retry_after_s=1)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Refusal(413, "too_large", "the request body is too large")
    if isinstance(error, web.HTTPException):
        return Refusal(error.status, "http_error", error.reason)
    return None


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what handlers raise into JSON; an unforeseen error says nothing of the inside."""
    try:
        return await handler(request)
    except ConnectionResetError:
        # The client went away, which its request hears of by itself.
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            logger.exception("%s %s broke", request.method, request.path)
            refusal = Refusal(500, "internal", "the engine broke on this request; its log says why")
        return response_of(refusal)


def bearer_guard(secret: str | None) -> Middleware:
    """A middleware that asks for the secret as a bearer token on every path; without a secret it lets all pass."""
    wanted = None if secret is None else f"Bearer {secret}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if wanted is not None and not hmac.compare_digest(given, wanted):
            raise Refusal(401, "unauthorized", "this engine wants its deployment's secret as a bearer token")
        return await handler(request)

    return guard
