"""One tree of errors for the platform.

DomainError
├── UnknownParameter   the address has no such one   400
├── Invalid      the input breaks a rule            422
├── NotFound     no such thing, or not yours         404
├── Forbidden    known, but not allowed              403
├── Conflict     the state has moved on              409
│   └── StaleLease   another holder owns the work    409
├── TooLarge     over a stated limit                 413
├── Busy         try again after a while             429
└── Unavailable  a part we need does not answer      503

Each is mapped once to HTTP (`common.problems`), and once to a toast.
"""

from __future__ import annotations

from collections.abc import Mapping


class DomainError(Exception):
    """Something a person or program can act on: what was wrong, with the value, and the way out."""

    status = 400
    code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        fields: Mapping[str, str] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.fields = dict(fields or {})
        self.retry_after_s = retry_after_s


class UnknownParameter(DomainError):
    """The query of an address holds what it does not read; `fields` says which."""

    status = 400
    code = "unknown_parameter"


class Invalid(DomainError):
    """The input breaks a rule; `fields` says which."""

    status = 422
    code = "invalid"


class NotFound(DomainError):
    """No such thing, or it belongs to another team (which must look the same)."""

    status = 404
    code = "not_found"


class Forbidden(DomainError):
    """The caller is known but lacks the role or scope."""

    status = 403
    code = "forbidden"


class Conflict(DomainError):
    """The state is no longer the one that the caller saw."""

    status = 409
    code = "conflict"


class StaleLease(Conflict):
    """Another holder owns this work now; whatever the caller was doing must stop."""

    code = "stale_lease"


class TooLarge(DomainError):
    """The input is over a stated limit."""

    status = 413
    code = "too_large"


class Busy(DomainError):
    """A bounded queue or quota is full."""

    status = 429
    code = "busy"


class Unavailable(DomainError):
    """A part that we need does not answer."""

    status = 503
    code = "unavailable"
