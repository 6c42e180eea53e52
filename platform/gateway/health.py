"""What must answer for this process to be of use: named, timed, and never more than a word to strangers."""

from __future__ import annotations

from collections.abc import Callable

import redis
from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from deployments.selectors import nodes_online

OK, FAILED = "ok", "failed"
# Without these nothing works; without the others something does not.
NEEDED = ("database", "migrations")
_migrated = False


def checks() -> dict[str, str]:
    """Return each check's word."""
    found: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            found[name] = OK if check() else FAILED
        except Exception:
            # Whatever it is, it is not well; the words of drivers are not for strangers.
            found[name] = FAILED
    return found


def verdict(found: dict[str, str]) -> str:
    """ready, degraded or unready."""
    if any(found[name] != OK for name in NEEDED):
        return "unready"
    return "ready" if all(word == OK for word in found.values()) else "degraded"


def _database() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone() == (1,)


def _migrations() -> bool:
    """Whether the database has every migration of this release; a yes is remembered."""
    global _migrated
    if not _migrated:
        executor = MigrationExecutor(connection)
        _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _migrated


def _valkey() -> bool:
    client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    finally:
        client.close()


def _workers() -> bool:
    return bool(nodes_online())


CHECKS: dict[str, Callable[[], bool]] = {
    "database": _database,
    "migrations": _migrations,
    "valkey": _valkey,
    "workers": _workers,
}
