"""Conditions: what holds for a deployment now, with a reason that becomes a sentence in the reader's language."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from django.utils import timezone

from deployments.models import Deployment
from deployments.selectors import Standing, fit_of, standing_of
from deployments.states import ALIVE, Phase, ReplicaState, Wanted


def conditions_of(deployment: Deployment, unplaced: int) -> list[dict[str, Any]]:
    """Return the conditions as they are stored; `since` moves only when the reason changes."""
    deployment.all_replicas = list(  # type: ignore[attr-defined]
        deployment.replicas.filter(Q(state__in=ALIVE) | Q(state=ReplicaState.FAILED, wanted=Wanted.RUN))
        .select_related("version__model", "node")
        .order_by("-id")
    )
    standing = standing_of(deployment)
    found = [
        _available(deployment, standing),
        _progress(deployment, standing),
        *_capacity(deployment, unplaced),
    ]
    known = {(old["type"], old["reason"]): old["since"] for old in deployment.conditions}
    now = timezone.now().isoformat(timespec="seconds")
    return [{**one, "since": known.get((one["type"], one["reason"]), now)} for one in found]


def _condition(type_: str, status: bool | None, reason: str, **detail: Any) -> dict[str, Any]:
    word = "unknown" if status is None else "true" if status else "false"
    return {"type": type_, "status": word, "reason": reason, "detail": detail}


def _available(deployment: Deployment, standing: Standing) -> dict[str, Any]:
    """Whether requests are answered."""
    live = str(deployment.live_version) if deployment.live_version else ""
    if standing.phase in (Phase.STOPPED, Phase.STOPPING):
        return _condition("available", False, "stopped")
    if standing.ready == 0:
        return _condition("available", False, "nothing_ready")
    if standing.silent:
        return _condition("available", None, "silent", node=standing.silent[0].node.name)
    reason = "serving" if standing.ready >= standing.wanted else "serving_short"
    return _condition("available", True, reason, version=live, ready=standing.ready, wanted=standing.wanted)


def _progress(deployment: Deployment, standing: Standing) -> dict[str, Any]:
    """Whether what runs is what is wanted, or is on its way."""
    wanted = str(deployment.desired_version)
    if standing.failed:
        first = standing.failed[0]
        return _condition(
            "progressing", False, "failed", version=wanted, error=first.error, detail=first.error_detail
        )
    if standing.phase in (Phase.STARTING, Phase.UPDATING):
        return _condition("progressing", True, "starting", version=wanted)
    if standing.coming:
        return _condition("progressing", True, "adding", count=standing.coming)
    if standing.phase == Phase.STOPPING:
        return _condition("progressing", True, "draining")
    if standing.phase == Phase.PENDING:
        return _condition("progressing", False, "waiting", version=wanted)
    return _condition("progressing", True, "settled")


def _capacity(deployment: Deployment, unplaced: int) -> list[dict[str, Any]]:
    """Why replicas have no place, when some have none."""
    if unplaced == 0:
        return []
    fit = fit_of(deployment.desired_version.spec, deployment.settings)
    if not fit.node:
        return [_condition("capacity", False, "no_node", count=unplaced)]
    return [
        _condition(
            "capacity", False, "no_memory", count=unplaced, need=fit.need.total, free=fit.free, node=fit.node
        )
    ]
