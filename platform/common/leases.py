"""Leases with fencing epochs, on the database's clock; what a process of this machine held is free when it has ended.

    claim = lease_claim(resource="job:12", holder="node-1/7")      # None while someone else holds it
    lease_renew(claim)                                              # StaleLease once it is lost
    with lease_guarded(claim): ...                                  # writes inside happen only while we own it

Source: the fencing-token pattern (Kleppmann, "How to do distributed locking", 2016) as a row in PostgreSQL.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from common.errors import StaleLease
from common.holders import is_gone

log = logging.getLogger(__name__)

CLAIM = """
INSERT INTO common_lease (resource, holder, epoch, heartbeat_at, expires_at)
VALUES (%(resource)s, %(holder)s, 1, now(), now() + make_interval(secs => %(ttl)s))
ON CONFLICT (resource) DO UPDATE
   SET holder = excluded.holder, epoch = common_lease.epoch + 1, heartbeat_at = now(), expires_at = excluded.expires_at
 WHERE common_lease.holder IS NULL OR common_lease.expires_at < now()
RETURNING epoch
"""
RENEW = """
UPDATE common_lease SET heartbeat_at = now(), expires_at = now() + make_interval(secs => %(ttl)s)
 WHERE resource = %(resource)s AND holder = %(holder)s AND epoch = %(epoch)s AND expires_at > now()
"""
# What stood there when the holder was found to have ended must still stand there.
TAKE_OVER = """
UPDATE common_lease
   SET holder = %(holder)s, epoch = epoch + 1, heartbeat_at = now(), expires_at = now() + make_interval(secs => %(ttl)s)
 WHERE resource = %(resource)s AND holder = %(gone)s AND epoch = %(epoch)s
RETURNING epoch
"""
RELEASE = """
UPDATE common_lease SET holder = NULL, expires_at = NULL
 WHERE resource = %(resource)s AND holder = %(holder)s AND epoch = %(epoch)s
"""
GUARD = """
SELECT 1 FROM common_lease
 WHERE resource = %(resource)s AND holder = %(holder)s AND epoch = %(epoch)s AND expires_at > now() FOR UPDATE
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one resource, as of one epoch."""

    resource: str
    holder: str
    epoch: int
    ttl_s: float

    def values(self) -> dict[str, Any]:
        """Return the SQL parameters that name this claim."""
        return {"resource": self.resource, "holder": self.holder, "epoch": self.epoch, "ttl": self.ttl_s}


def lease_claim(*, resource: str, holder: str, ttl_s: float | None = None) -> Claim | None:
    """Take the resource if it is free, its holder's time ran out, or its holder was a process of this machine that has
    ended; the epoch grows by one."""
    ttl = float(settings.LEASE_TTL_S if ttl_s is None else ttl_s)
    values: dict[str, Any] = {"resource": resource, "holder": holder, "ttl": ttl}
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, values)
        row = cursor.fetchone() or _taken_over(cursor, values)
    return Claim(resource, holder, row[0], ttl) if row else None


def _taken_over(cursor: Any, values: dict[str, Any]) -> Any:
    cursor.execute("SELECT holder, epoch FROM common_lease WHERE resource = %(resource)s", values)
    held = cursor.fetchone()
    if held is None or held[0] is None or not is_gone(held[0]):
        return None
    log.info("the holder of %s (%s) has ended; it is taken over", values["resource"], held[0])
    cursor.execute(TAKE_OVER, {**values, "gone": held[0], "epoch": held[1]})
    return cursor.fetchone()


def lease_renew(claim: Claim) -> None:
    """Prolong the claim, or raise StaleLease: the caller must stop its work at once."""
    with connection.cursor() as cursor:
        cursor.execute(RENEW, claim.values())
        if cursor.rowcount != 1:
            raise StaleLease(f"The lease on {claim.resource} (epoch {claim.epoch}) is lost; stop this work.")


def lease_release(claim: Claim) -> None:
    """Give the resource back; harmless when it is no longer ours."""
    with connection.cursor() as cursor:
        cursor.execute(RELEASE, claim.values())


@contextmanager
def lease_guarded(claim: Claim) -> Iterator[None]:
    """Run writes in one transaction that commits only while the claim still holds."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(GUARD, claim.values())
            if cursor.fetchone() is None:
                raise StaleLease(
                    f"The lease on {claim.resource} (epoch {claim.epoch}) is lost; nothing was written."
                )
        yield
