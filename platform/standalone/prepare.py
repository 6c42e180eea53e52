"""Brings the database up to date and makes the first admin's link; one Django start for both.

Run as `python -m standalone.prepare`; the last line of its output is JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Migrate, then say whether an admin is still missing and how to become it."""
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections

    applied = _pending_migrations()
    if applied:
        call_command("migrate", interactive=False, verbosity=0)
    answer: dict[str, Any] = {"migrations": applied, "setup_token": _setup_token()}
    for connection in connections.all(initialized_only=True):
        connection.close()
        getattr(connection, "close_pool", lambda: None)()
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _pending_migrations() -> int:
    """Return how many migrations are not applied yet."""
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def _setup_token() -> str | None:
    """Return a one-time token while no admin exists."""
    from accounts.services import admin_exists, setup_token_issue

    return None if admin_exists() else setup_token_issue()


if __name__ == "__main__":
    main()
