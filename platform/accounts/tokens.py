"""Making and checking secrets. Only hashes are stored; a look-up uses the whole hash through a unique index."""

from __future__ import annotations

import hashlib
import secrets

TOKEN_PREFIX = "tt_"  # noqa: S105
INVITATION_PREFIX = "ti_"
SHOWN_CHARACTERS = 10


def token_new(prefix: str = TOKEN_PREFIX) -> str:
    """Return a fresh token of 256 random bits; the prefix says what it is for."""
    return prefix + secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    """Return the hash under which a token is stored. A fast hash is right: the input has 256 bits of entropy."""
    return hashlib.sha256(token.encode()).hexdigest()


def token_shown(token: str) -> str:
    """Return the beginning of a token, enough to recognise it by and useless as a key."""
    return token[:SHOWN_CHARACTERS]
