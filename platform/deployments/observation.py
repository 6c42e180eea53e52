"""What a node's agent may write: its own heartbeat, and what it sees of the replicas of its node.

Every write happens inside the agent's lease and names the replica's epoch, so that an agent that was given up, and an
engine that was replaced, change nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import F, QuerySet
from django.db.models.functions import Now

from common.errors import StaleLease
from common.leases import Claim, lease_claim, lease_guarded
from common.loops import wake
from deployments.announce import announce
from deployments.models import DeploymentEvent, Node, Replica
from deployments.states import ALIVE, ReplicaState, Wanted


def bell_of(node_name: str) -> str:
    """The name that wakes a node's agent."""
    return f"node:{node_name}"


def node_claim(*, name: str, holder: str) -> Claim | None:
    """Become the one agent of a node, or learn that another one is."""
    return lease_claim(resource=f"node:{name}", holder=holder)


Beat = tuple[int, int, Mapping[str, Any]]


def node_report(claim: Claim, *, name: str, capacity: Mapping[str, Any], beats: Iterable[Beat] = ()) -> None:
    """Say that the node is there and what it has, and beat for its replicas with (replica, epoch, figures).

    A node seen for the first time, or again, wakes the reconciler.
    """
    with lease_guarded(claim):
        told = {"heartbeat_at": Now(), "capacity": dict(capacity)}
        if not Node.objects.filter(name=name, heartbeat_at__isnull=False).update(**told):
            Node.objects.update_or_create(name=name, defaults=told)
            wake("deployments")
        for pk, epoch, stats in beats:
            Replica.objects.filter(pk=pk, epoch=epoch).update(heartbeat_at=Now(), stats=dict(stats))


def wishes_on(node_name: str) -> dict[int, str]:
    """Return what is wanted of each replica that a node's agent has to look after."""
    alive = Replica.objects.filter(node__name=node_name, state__in=ALIVE)
    return dict(alive.values_list("pk", "wanted"))


def replicas_on(node_name: str) -> QuerySet[Replica]:
    """Return the replicas that a node's agent has to look after."""
    return (
        Replica.objects.filter(node__name=node_name, state__in=ALIVE)
        .select_related("version__model", "deployment", "node")
        .order_by("id")
    )


def replica_begun(claim: Claim, replica: Replica, *, address: str, is_restart: bool) -> int:
    """Open a new epoch for a replica that is about to be started; return it."""
    with lease_guarded(claim):
        moved = Replica.objects.filter(pk=replica.pk, epoch=replica.epoch, state__in=ALIVE).update(
            epoch=F("epoch") + 1,
            state=ReplicaState.STARTING,
            address=address,
            pid=None,
            restarts=F("restarts") + (1 if is_restart else 0),
            heartbeat_at=Now(),
            stats={},
        )
        if moved != 1:
            raise StaleLease(f"Replica {replica.pk} is no longer at epoch {replica.epoch}; look again.")
        if is_restart:
            _tell(replica, "replica_restarting")
        announce(replica.deployment_id)
    return replica.epoch + 1


def replica_seen(
    claim: Claim, replica: Replica, *, epoch: int, state: ReplicaState, event: str = "", **facts: Any
) -> bool:
    """Write a new state of the engine of one epoch; False when that epoch is over."""
    with lease_guarded(claim):
        if state == ReplicaState.READY:
            facts["ready_at"] = Now()
        if state in (ReplicaState.STOPPED, ReplicaState.FAILED):
            facts |= {"stopped_at": Now(), "pid": None}
        moved = Replica.objects.filter(pk=replica.pk, epoch=epoch).update(
            state=state, heartbeat_at=Now(), **facts
        )
        if moved != 1:
            return False
        if event:
            _tell(replica, event, **_detail(facts))
        announce(replica.deployment_id)
        wake("deployments")
    return True


def replicas_let_go(claim: Claim, *, node_name: str) -> None:
    """The agent stops: its engines have ended, and what is still wanted waits for the next agent."""
    with lease_guarded(claim):
        mine = Replica.objects.filter(node__name=node_name, state__in=ALIVE)
        mine.filter(wanted=Wanted.RUN).update(state=ReplicaState.PENDING, address="", pid=None, stats={})
        mine.filter(wanted=Wanted.DRAIN).update(state=ReplicaState.STOPPED, stopped_at=Now(), pid=None)
        Node.objects.filter(name=node_name).update(heartbeat_at=None)
        for deployment_id in mine.values_list("deployment_id", flat=True).distinct():
            announce(deployment_id)


def _tell(replica: Replica, kind: str, **detail: Any) -> None:
    known = {"replica": replica.pk, "node": replica.node.name, "version": str(replica.version)}
    DeploymentEvent.objects.create(deployment_id=replica.deployment_id, kind=kind, detail={**known, **detail})


def _detail(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: facts[key] for key in ("error", "error_detail") if facts.get(key)}
    return {**kept, **facts.get("timings", {})}
