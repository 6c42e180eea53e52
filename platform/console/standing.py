"""How one deployment stands: what is wanted beside what is observed, in one row."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.translation import gettext

from console import navigation
from console.traffic import Traffic
from deployments.models import Deployment, Replica
from deployments.states import COMING, Phase, ReplicaState

PHASE_LAMPS = {
    Phase.PENDING: "busy",
    Phase.STARTING: "busy",
    Phase.READY: "ok",
    Phase.UPDATING: "busy",
    Phase.DEGRADED: "caution",
    Phase.BLOCKED: "caution",
    Phase.FAILED: "danger",
    Phase.STOPPING: "busy",
    Phase.STOPPED: "off",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """A deployment as the overview shows it."""

    deployment: Deployment
    phase: Phase
    ready: int
    wanted: int
    replicas: list[Replica]
    traffic: Traffic
    url: str

    @property
    def serves(self) -> bool:
        """Whether requests are answered now."""
        return self.ready > 0

    @property
    def lamp(self) -> str:
        """The lamp of its phase."""
        return PHASE_LAMPS[self.phase]

    @property
    def worry(self) -> str:
        """What is wrong, in one sentence; nothing when it is well or on its way."""
        name = self.deployment.name
        if self.phase == Phase.FAILED:
            return gettext("%(name)s does not answer: %(reason)s") % {"name": name, "reason": self.reason}
        if self.phase == Phase.BLOCKED:
            return gettext("The new version of %(name)s failed, the old one still serves: %(reason)s") % {
                "name": name,
                "reason": self.reason,
            }
        if self.phase == Phase.DEGRADED:
            return gettext("%(name)s has %(ready)s of %(wanted)s replicas.") % {
                "name": name,
                "ready": self.ready,
                "wanted": self.wanted,
            }
        return ""

    @property
    def reason(self) -> str:
        """What the newest failed replica said."""
        failed = [one for one in self.replicas if one.state == ReplicaState.FAILED]
        return failed[-1].error_detail or failed[-1].error if failed else "—"


def standing_of(deployment: Deployment, traffic: Traffic | None) -> Standing:
    """Look at one deployment with its prefetched replicas."""
    replicas = list(deployment.replicas.all())
    live = [one for one in replicas if one.state not in (ReplicaState.STOPPED, ReplicaState.FAILED)]
    ready = [one for one in replicas if one.state == ReplicaState.READY]
    return Standing(
        deployment=deployment,
        phase=phase_of(deployment, replicas),
        ready=len(ready),
        wanted=deployment.desired_replicas,
        replicas=live or replicas[-1:],
        traffic=traffic or Traffic(),
        url=f"{navigation.address('deployments:list') or '/'}{deployment.pk}/",
    )


def phase_of(deployment: Deployment, replicas: list[Replica]) -> Phase:
    """What the replicas amount to."""
    current = [one for one in replicas if one.revision == deployment.revision]
    ready = [one for one in replicas if one.state == ReplicaState.READY]
    if deployment.desired_replicas == 0:
        return Phase.STOPPING if ready else Phase.STOPPED
    fresh = [one for one in current if one.state == ReplicaState.READY]
    failed = [one for one in current if one.state == ReplicaState.FAILED]
    coming = [one for one in current if one.state in COMING]
    if len(fresh) >= deployment.desired_replicas:
        return Phase.READY
    if ready and deployment.live_revision != deployment.revision:
        return Phase.UPDATING if coming or not failed else Phase.BLOCKED
    if fresh:
        return Phase.DEGRADED
    if coming:
        return Phase.STARTING
    return Phase.FAILED if failed else Phase.PENDING
