"""Errors as OpenAI clients read them: `{"error": {"message", "type", "param", "code"}}`, before and inside a stream."""

from __future__ import annotations

import json
from typing import Any

# The reasons of requests that nobody took.
UNAVAILABLE, BUSY = "unavailable", "busy"
# What an engine says that has no place left, before and after waiting for one.
FULL = ("engine_busy", "queue_timeout")


class ApiError(Exception):
    """A refusal or a failure, with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers

    def as_object(self) -> dict[str, Any]:
        """The body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def as_json(self) -> bytes:
        """The body as bytes."""
        return json.dumps(self.as_object(), ensure_ascii=False).encode()


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request breaks a rule."""
    return ApiError(400, message, param=param, code=code)


def unauthenticated(message: str) -> ApiError:
    """401: we do not know who calls."""
    return ApiError(
        401,
        message,
        type="authentication_error",
        code="invalid_api_key",
        headers=((b"www-authenticate", b'Bearer realm="turnout"'),),
    )


def forbidden(message: str) -> ApiError:
    """403: known, but not allowed."""
    return ApiError(403, message, type="permission_error", code="insufficient_permissions")


def no_such_model(name: str) -> ApiError:
    """404: no deployment of this name in the caller's team; another team's looks the same."""
    return ApiError(
        404,
        f"The model {name[:80]!r} does not exist or you do not have access to it. GET /v1/models lists yours.",
        code="model_not_found",
        param="model",
    )


def too_many(message: str, *, code: str, retry_after_s: int, type: str = "rate_limit_error") -> ApiError:
    """429: try again later."""
    return ApiError(429, message, type=type, code=code, retry_after_s=retry_after_s)


def unavailable(message: str, *, code: str, retry_after_s: int = 2) -> ApiError:
    """503: nobody can answer now."""
    return ApiError(503, message, type="server_error", code=code, retry_after_s=retry_after_s)


def internal(request_id: str) -> ApiError:
    """500: our fault; the log has the request id."""
    return ApiError(
        500,
        f"Something failed on our side. The request id {request_id} helps to find it in the log.",
        type="server_error",
        code="internal_error",
    )


def outage(error: ApiError) -> str:
    """What the books call a refusal that is not the caller's fault; "" for one that is."""
    if error.status >= 500:
        return UNAVAILABLE
    return BUSY if error.status == 429 and error.code in FULL else ""


def from_engine(
    status: int, code: str, message: str, retry_after_s: int | None = None, *, param: str | None = None
) -> ApiError:
    """Put what an engine said into words of this API; an engine's own faults are not repeated to strangers.

    `param` is the engine's field that is at fault: the body that was sent knows its own name for it.
    """
    if code == "prompt_too_long" or status == 413:
        return bad_request(message, param=param or "prompt", code="context_length_exceeded")
    if status == 429:
        return too_many(message, code=code, retry_after_s=retry_after_s or 1)
    # The request itself forbids every token: a grammar that ends before min_tokens, or one beyond its limits.
    if status == 400 or code == "no_way_on":
        return bad_request(message, param="grammar" if code == "no_way_on" else param, code=code)
    if code == "not_finite":
        return ApiError(
            500,
            "The model's output is not finite; this version or its precision is at fault.",
            type="server_error",
            code=code,
        )
    return unavailable(
        "The engine ended before the answer was complete.", code=code, retry_after_s=retry_after_s or 2
    )
