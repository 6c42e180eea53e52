"""Whether anything stands otherwise than at the last look: one statement, where a look at each deployment takes a dozen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.db import connection

from deployments.states import ALIVE

# Nothing that a plan or a condition is made of may be missing here, but for what nodes have free: where that matters a
# replica has no place, and then everything is looked at. `xmin` changes with each write to a row.
EVERYTHING = """
WITH alive AS (
    SELECT * FROM deployments_replica WHERE state = ANY(%(alive)s) OR (state = 'failed' AND wanted = 'run')
)
SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT concat_ws(' ', 'deployment', id, xmin) AS line FROM deployments_deployment
     WHERE deleted_at IS NULL OR id IN (SELECT deployment_id FROM alive)
    UNION ALL
    SELECT concat_ws(' ', 'replica', id, revision, version_id, node_id, state, wanted, epoch, error, error_detail,
                     heartbeat_at < now() - make_interval(secs => %(ttl)s)) FROM alive
    UNION ALL
    SELECT concat_ws(' ', 'node', id, name, heartbeat_at > now() - make_interval(secs => %(ttl)s)) FROM deployments_node
) AS lines
"""
# So often everything is looked at all the same.
LOOK_EVERY_S = 30.0


def everything_now() -> str:
    """How everything stands, in words that are equal when nothing has changed."""
    with connection.cursor() as cursor:
        cursor.execute(
            EVERYTHING, {"alive": [state.value for state in ALIVE], "ttl": float(settings.LEASE_TTL_S)}
        )
        return cursor.fetchone()[0] or ""


@dataclass(slots=True)
class Lookout:
    """Calls `look` unless everything stands as when it last had nothing to do."""

    # Returns whether everything is settled.
    look: Callable[[], bool]
    settled: str | None = None
    look_at: float = 0.0

    def turn(self) -> None:
        """Take one turn."""
        # Before the look: what changes meanwhile is seen at the next turn.
        now = everything_now()
        if now == self.settled and time.monotonic() < self.look_at:
            return
        self.settled = None
        if self.look():
            self.settled, self.look_at = now, time.monotonic() + LOOK_EVERY_S
