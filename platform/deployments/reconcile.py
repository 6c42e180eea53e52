"""The loop "deployments": look at every deployment, plan, write what was decided, and say how it stands."""

from __future__ import annotations

import logging
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from common.loops import loop, wake
from deployments.announce import announce
from deployments.conditions import conditions_of
from deployments.engine_settings import need_of
from deployments.lookout import Lookout
from deployments.models import Deployment, DeploymentEvent, DeploymentRevision, Node, Replica
from deployments.plan import (
    Action,
    Create,
    Drain,
    Goal,
    GoDark,
    NodeView,
    Observed,
    Plan,
    Promote,
    ReplicaView,
    plan,
)
from deployments.selectors import free_bytes, nodes_online, starting_on
from deployments.states import ALIVE, ReplicaState, Wanted

log = logging.getLogger(__name__)


def reconcile_all() -> bool:
    """Take one look at everything; one deployment's error does not stop the others. True when there was nothing to do."""
    lose_silent_replicas()
    is_settled = True
    alive = Replica.objects.filter(deployment=OuterRef("pk"), state__in=ALIVE)
    due = Deployment.objects.filter(Q(deleted_at=None) | Exists(alive)).order_by("pk")
    for pk in list(due.values_list("pk", flat=True)):
        try:
            decided = reconcile(pk)
            is_settled = is_settled and not decided.actions and not decided.unplaced
        except Exception:
            log.exception("deployment %s could not be reconciled", pk)
            is_settled = False
    return is_settled


_lookout = Lookout(reconcile_all)


@loop("deployments", every_s=3)
def reconcile_what_changed() -> None:
    """Take one turn."""
    _lookout.turn()


@transaction.atomic
def reconcile(deployment_id: int) -> Plan:
    """Bring one deployment one decision closer to what is desired."""
    deployment = Deployment.objects.select_for_update().get(pk=deployment_id)
    replicas = list(
        deployment.replicas.filter(Q(state__in=ALIVE) | Q(state=ReplicaState.FAILED, wanted=Wanted.RUN))
        .select_related("node")
        .order_by("id")
    )
    decided = plan(Goal(deployment.revision, deployment.desired_replicas), observe(deployment, replicas))
    for action in decided.actions:
        carry_out(deployment, action)
    settle(deployment, decided)
    return decided


def observe(deployment: Deployment, replicas: list[Replica]) -> Observed:
    """Put rows into the words of the plan."""
    views = tuple(
        ReplicaView(one.pk, one.revision, ReplicaState(one.state), Wanted(one.wanted), one.node.name)
        for one in replicas
    )
    nodes = []
    for node in nodes_online():
        engines = Replica.objects.filter(node=node, state__in=ALIVE, wanted=Wanted.RUN).count()
        nodes.append(NodeView(node.name, free_bytes(node, starting_on(node)), engines))
    needs = need_of(deployment.desired_version.spec, deployment.settings).total
    return Observed(deployment.live_revision, views, tuple(nodes), needs)


def carry_out(deployment: Deployment, action: Action) -> None:
    """Write one decision."""
    if isinstance(action, Create):
        revision = _revision(deployment, action.revision)
        node = Node.objects.get(name=action.node)
        replica = Replica.objects.create(
            deployment=deployment, version=revision.version, revision=revision.number, node=node
        )
        tell(deployment, "replica_planned", replica=replica.pk, node=node.name, version=str(revision.version))
        wake(f"node:{node.name}")
    elif isinstance(action, Drain):
        replica = Replica.objects.select_related("node").get(pk=action.replica)
        Replica.objects.filter(pk=replica.pk, wanted=Wanted.RUN).update(wanted=Wanted.DRAIN)
        wake(f"node:{replica.node.name}")
    elif isinstance(action, Promote):
        revision = _revision(deployment, action.revision)
        deployment.live_version, deployment.live_revision = revision.version, revision.number
        deployment.save(update_fields=["live_version", "live_revision"])
        tell(deployment, "promoted", version=str(revision.version), revision=revision.number)
    elif isinstance(action, GoDark):
        deployment.live_version = deployment.live_revision = None
        deployment.save(update_fields=["live_version", "live_revision"])
        tell(deployment, "dark")


def settle(deployment: Deployment, decided: Plan) -> None:
    """Store what was observed, and announce it when it differs."""
    before = (deployment.observed_generation, deployment.conditions)
    deployment.conditions = conditions_of(deployment, decided.unplaced)
    deployment.observed_generation = deployment.generation
    if decided.actions or before != (deployment.observed_generation, deployment.conditions):
        deployment.save(update_fields=["observed_generation", "conditions"])
        announce(deployment.pk)


def tell(deployment: Deployment, kind: str, **detail: Any) -> None:
    """Write one line of the timeline."""
    DeploymentEvent.objects.create(deployment=deployment, kind=kind, detail=detail)


def lose_silent_replicas() -> None:
    """Give up replicas of a node that went silent, but only while another node could take them.

    When every node is silent at once the fault is more likely ours, and there is nowhere to go anyway.
    """
    online = nodes_online()
    if not online:
        return
    lost = (
        Replica.objects.filter(state__in=ALIVE).exclude(node__in=online).select_related("node", "deployment")
    )
    for replica in lost:
        never_started = replica.state == ReplicaState.PENDING and replica.heartbeat_at is None
        with transaction.atomic():
            moved = Replica.objects.filter(pk=replica.pk, state=replica.state).update(
                state=ReplicaState.STOPPED,
                error="" if never_started else "node_silent",
                stopped_at=timezone.now(),
                pid=None,
            )
            if moved:
                tell(replica.deployment, "node_silent", replica=replica.pk, node=replica.node.name)
                announce(replica.deployment_id)


def _revision(deployment: Deployment, number: int) -> DeploymentRevision:
    return DeploymentRevision.objects.select_related("version__model").get(
        deployment=deployment, number=number
    )
