"""Which deployments a team has, what serves behind each, and which replica should take the next request."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from gateway.database import Database, Remembered
from gateway.errors import ApiError, bad_request, no_such_model, unavailable

# Who waits for a first replica is not to wait for what is remembered of the time before it.
LIFE_S, COMING_LIFE_S = 0.5, 0.05
FIND = """
SELECT d.id, d.name, d.domains, d.desired_replicas, d.live_version_id, d.live_revision,
       extract(epoch FROM d.created_at)::bigint AS created, v.number, m.name AS model_name,
       COALESCE(rev.domains, d.domains) AS live_domains,
       COALESCE(jsonb_agg(jsonb_build_object('id', r.id, 'epoch', r.epoch, 'address', r.address))
                FILTER (WHERE r.id IS NOT NULL), '[]') AS replicas
  FROM deployments_deployment d
  LEFT JOIN registry_modelversion v ON v.id = d.live_version_id
  LEFT JOIN registry_model m ON m.id = v.model_id
  LEFT JOIN deployments_deploymentrevision rev ON rev.deployment_id = d.id AND rev.number = d.live_revision
  LEFT JOIN deployments_replica r ON r.deployment_id = d.id AND r.revision = d.live_revision
       AND r.state = 'ready' AND r.wanted = 'run'
 WHERE d.team_id = %(team)s AND d.deleted_at IS NULL AND (%(name)s::text IS NULL OR d.name = %(name)s)
 GROUP BY d.id, v.id, m.id, rev.id
 ORDER BY d.id DESC
 LIMIT 1000
"""


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """One engine that answers."""

    id: int
    epoch: int
    address: str


@dataclass(frozen=True, slots=True)
class Target:
    """One deployment as requests see it."""

    id: int
    name: str
    created: int
    version_id: int | None
    version: str
    revision: int | None
    domains: tuple[str, ...]
    replicas: tuple[ReplicaAddress, ...]
    is_wanted: bool

    def checked_domain(self, code: str | None) -> str | None:
        """Return the domain code, or raise for one that this deployment does not have."""
        if code is None or code in self.domains:
            return code
        known = ", ".join(self.domains) or "none"
        raise bad_request(
            f"The model {self.name!r} has no domain {code!r}; it has: {known}.",
            param="domain",
            code="unknown_domain",
        )

    def must_serve(self) -> None:
        """Raise 503 with the reason when nobody answers."""
        if self.replicas:
            return
        if not self.is_wanted:
            raise unavailable(
                f"The deployment {self.name!r} is stopped.", code="deployment_stopped", retry_after_s=60
            )
        raise unavailable(f"The deployment {self.name!r} has no replica that is ready.", code="not_ready")


class Directory:
    """Looks deployments up, remembering them for half a second, less while nobody serves yet; counts what runs where."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.in_flight: Counter[int] = Counter()
        self._targets: Remembered[Target | ApiError] = Remembered(LIFE_S, life_of=_life_of)

    async def find(self, team_id: int, name: str) -> Target:
        """Return one of the team's deployments.

        Raises:
            ApiError: 404 for any other name.
        """
        found = await self._targets.get((team_id, name), lambda: self._look_up(team_id, name))
        if isinstance(found, ApiError):
            raise found
        return found

    def forget(self, team_id: int, name: str) -> None:
        """Something went wrong there: look again next time."""
        self._targets.forget((team_id, name))

    async def all_of(self, team_id: int) -> list[Target]:
        """Return the team's deployments, newest first."""
        rows = await self.database.rows(FIND, {"team": team_id, "name": None})
        return [_target(row) for row in rows]

    def choose(self, target: Target, tried: set[tuple[int, int]]) -> ReplicaAddress | None:
        """The replica with the fewest running requests among those that were not tried."""
        fresh = [one for one in target.replicas if (one.id, one.epoch) not in tried]
        return min(fresh, key=lambda one: (self.in_flight[one.id], random.random()), default=None)  # noqa: S311

    async def _look_up(self, team_id: int, name: str) -> Target | ApiError:
        rows = await self.database.rows(FIND, {"team": team_id, "name": name})
        return _target(rows[0]) if rows else no_such_model(name)


def _life_of(found: Target | ApiError) -> float:
    is_coming = isinstance(found, Target) and found.is_wanted and not found.replicas
    return COMING_LIFE_S if is_coming else LIFE_S


def _target(row: dict[str, Any]) -> Target:
    domains = row["live_domains"] if row["live_version_id"] else row["domains"]
    return Target(
        id=row["id"],
        name=row["name"],
        created=row["created"],
        version_id=row["live_version_id"],
        version=f"{row['model_name']} v{row['number']}" if row["live_version_id"] else "",
        revision=row["live_revision"],
        domains=tuple(domain["code"] for domain in (domains or {}).get("domains", ())),
        replicas=tuple(ReplicaAddress(one["id"], one["epoch"], one["address"]) for one in row["replicas"]),
        is_wanted=row["desired_replicas"] > 0,
    )
