"""Look-ups of deployments, cut to one team, and what their replicas amount to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import Prefetch, QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext as _

from accounts.models import Team
from common.errors import NotFound
from deployments.engine_settings import Need, need_of
from deployments.models import Deployment, DeploymentEvent, DeploymentRevision, Node, Replica
from deployments.states import ALIVE, COMING, Phase, ReplicaState, Wanted

PHASE_LAMPS = {
    Phase.PENDING: "caution",
    Phase.STARTING: "busy",
    Phase.READY: "ok",
    Phase.UPDATING: "busy",
    Phase.DEGRADED: "caution",
    Phase.BLOCKED: "caution",
    Phase.FAILED: "danger",
    Phase.STOPPING: "busy",
    Phase.STOPPED: "off",
}


def deployments_of(team: Team) -> QuerySet[Deployment]:
    """Return the team's deployments with their replicas, newest first."""
    shown = Prefetch(
        "replicas",
        Replica.objects.select_related("version__model", "node").order_by("-id"),
        to_attr="all_replicas",
    )
    return (
        Deployment.objects.filter(team=team, deleted_at=None)
        .select_related("desired_version__model", "live_version__model", "domain_map", "created_by")
        .prefetch_related(shown)
        .order_by("-id")
    )


def deployment_get(team: Team, pk: int) -> Deployment:
    """Return one of the team's deployments or raise NotFound."""
    found = deployments_of(team).filter(pk=pk).first()
    if found is None:
        raise NotFound(_("There is no deployment number %(number)s here.") % {"number": pk})
    return found


def revisions_of(deployment: Deployment) -> QuerySet[DeploymentRevision]:
    """Return what was wanted over time, newest first."""
    return deployment.revisions.select_related("version__model", "created_by").order_by("-number")


def revision_get(deployment: Deployment, number: int) -> DeploymentRevision:
    """Return one revision or raise NotFound."""
    found = revisions_of(deployment).filter(number=number).first()
    if found is None:
        raise NotFound(_("This deployment has no revision %(number)s.") % {"number": number})
    return found


def events_of(deployment: Deployment, limit: int = 40) -> list[DeploymentEvent]:
    """Return the timeline, newest first."""
    return list(deployment.events.order_by("-id")[:limit])


def replicas_of(deployment: Deployment) -> list[Replica]:
    """Return the replicas, those that the prefetch brought when there are any."""
    found: list[Replica] | None = getattr(deployment, "all_replicas", None)
    if found is None:
        found = list(deployment.replicas.select_related("version__model", "node").order_by("-id"))
    return found


def shown_replicas(deployment: Deployment) -> list[Replica]:
    """Return the replicas worth a row: alive ones, and those that failed at what is wanted now."""
    return [
        one
        for one in replicas_of(deployment)
        if one.state in ALIVE or (one.state == ReplicaState.FAILED and one.wanted == Wanted.RUN)
    ]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a deployment amounts to now."""

    phase: Phase
    ready: int
    wanted: int
    coming: int
    failed: tuple[Replica, ...]
    silent: tuple[Replica, ...]

    @property
    def lamp(self) -> str:
        """The lamp of the phase; silence makes it unknown."""
        return "unknown" if self.silent and self.phase == Phase.READY else PHASE_LAMPS[self.phase]


def standing_of(deployment: Deployment) -> Standing:
    """Derive the phase from desired and observed state."""
    replicas = [one for one in replicas_of(deployment) if one.wanted == Wanted.RUN]
    live = [
        one
        for one in replicas
        if one.revision == deployment.live_revision and one.state == ReplicaState.READY
    ]
    target = [one for one in replicas if one.revision == deployment.revision]
    coming = [one for one in target if one.state in COMING]
    failed = tuple(one for one in target if one.state == ReplicaState.FAILED)
    going = [one for one in replicas_of(deployment) if one.state in ALIVE]
    phase = _phase(deployment, live, coming, failed, going)
    silent = tuple(one for one in live if is_silent(one))
    return Standing(phase, len(live), deployment.desired_replicas, len(coming), failed, silent)


def _phase(
    deployment: Deployment,
    live: list[Replica],
    coming: list[Replica],
    failed: tuple[Replica, ...],
    going: list[Replica],
) -> Phase:
    if deployment.desired_replicas == 0:
        return Phase.STOPPING if going else Phase.STOPPED
    if not live:
        return Phase.STARTING if coming else Phase.FAILED if failed else Phase.PENDING
    if deployment.live_revision != deployment.revision:
        return Phase.BLOCKED if failed else Phase.UPDATING
    return Phase.READY if len(live) >= deployment.desired_replicas else Phase.DEGRADED


def is_silent(replica: Replica) -> bool:
    """Whether nothing was heard of a replica for longer than its node's lease lives."""
    if replica.heartbeat_at is None or replica.state not in ALIVE or replica.state == ReplicaState.PENDING:
        return False
    return timezone.now() - replica.heartbeat_at > dt.timedelta(seconds=settings.LEASE_TTL_S)


def nodes_online() -> list[Node]:
    """Return the nodes that were heard of lately, by the database's clock."""
    limit = Now() - dt.timedelta(seconds=settings.LEASE_TTL_S)
    return list(Node.objects.filter(heartbeat_at__gt=limit).order_by("name"))


def nodes_all() -> QuerySet[Node]:
    """Return every node that ever reported."""
    return Node.objects.order_by("name")


def free_bytes(node: Node, coming: Iterable[Replica]) -> int:
    """Return what a node can still give: what it reported, less what its starting engines have not taken yet."""
    reported = int(node.capacity.get("free_bytes", 0))
    promised = sum(
        need_of(one.version.spec, one.deployment.settings).total - int(one.stats.get("rss_bytes", 0))
        for one in coming
    )
    return max(0, reported - max(0, promised))


@dataclass(frozen=True, slots=True)
class Fit:
    """How many of the replicas that are asked for fit, and on which node one would have most room."""

    need: Need
    node: str
    free: int
    replicas: int = 1
    # How many of these replicas the nodes have room for, all nodes together.
    places: int = 0
    # Whether it was said how many experts a GPU is to hold.
    on_gpu: bool = False

    @property
    def fits(self) -> bool:
        """Whether there is room for all of them."""
        return bool(self.node) and self.places >= self.replicas

    @property
    def fits_one(self) -> bool:
        """Whether there is room for one at least."""
        return self.places > 0

    @property
    def total(self) -> int:
        """What all of them need."""
        return self.need.total * self.replicas

    @property
    def short(self) -> int:
        """How many bytes are missing."""
        return max(0, self.need.total - self.free)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"need": self.need.as_dict(), "node": self.node, "free_bytes": self.free, "fits": self.fits}


def fit_of(spec: dict[str, Any], engine_settings: dict[str, Any], replicas: int = 1) -> Fit:
    """Compare what replicas need with the nodes that are online; each replica lies on one node whole."""
    need, on_gpu = need_of(spec, engine_settings), engine_settings.get("device_experts") is not None
    rooms = {node.name: free_bytes(node, starting_on(node)) for node in nodes_online()}
    if not rooms:
        return Fit(need, "", 0, replicas, on_gpu=on_gpu)
    name = max(rooms, key=lambda one: (rooms[one], one))
    places = sum(room // need.total for room in rooms.values())
    return Fit(need, name, rooms[name], replicas, places, on_gpu)


def starting_on(node: Node) -> list[Replica]:
    """Return the replicas of a node that have not taken all of their memory yet."""
    return list(
        Replica.objects.filter(node=node, state__in=[*COMING], wanted=Wanted.RUN).select_related(
            "version", "deployment"
        )
    )
