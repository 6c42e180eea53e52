"""How one deployment stands on the overview: what is wanted beside what is observed, and its last hour."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.translation import gettext

from common.told import told
from console import navigation
from console.traffic import Traffic
from deployments import selectors
from deployments.models import Deployment
from deployments.states import Phase


@dataclass(frozen=True, slots=True)
class Row:
    """A deployment as the overview shows it."""

    deployment: Deployment
    standing: selectors.Standing
    traffic: Traffic
    url: str

    @property
    def serves(self) -> bool:
        """Whether requests are answered now."""
        return self.standing.ready > 0

    @property
    def is_coming(self) -> bool:
        """Whether it is wanted, does not answer yet, and nothing has gone wrong so far."""
        return not self.serves and self.standing.phase in (Phase.PENDING, Phase.STARTING)

    @property
    def worry(self) -> str:
        """What is wrong, in one sentence; nothing when it is well or on its way."""
        name, standing = self.deployment.name, self.standing
        if standing.phase == Phase.FAILED:
            return gettext("%(name)s does not answer: %(reason)s") % {"name": name, "reason": self.reason}
        if standing.phase == Phase.BLOCKED:
            sentence = gettext("The new version of %(name)s failed, the old one still serves: %(reason)s")
            return sentence % {"name": name, "reason": self.reason}
        if standing.phase == Phase.DEGRADED:
            sentence = gettext("%(name)s has %(ready)s of %(wanted)s replicas.")
            return sentence % {"name": name, "ready": standing.ready, "wanted": standing.wanted}
        if standing.silent:
            return gettext("%(name)s has not been heard of; it may still answer.") % {"name": name}
        return ""

    @property
    def reason(self) -> str:
        """What the newest failed replica said."""
        failed = self.standing.failed
        return (told(failed[0].error_detail) or failed[0].error) if failed else no_reason()


def no_reason() -> str:
    """What stands for a reason that nobody told."""
    return gettext("no reason was told")


def row_of(deployment: Deployment, traffic: Traffic | None) -> Row:
    """Look at one deployment, with the replicas that came along."""
    return Row(
        deployment=deployment,
        standing=selectors.standing_of(deployment),
        traffic=traffic or Traffic(),
        url=f"{navigation.address('deployments:list') or '/'}{deployment.pk}/",
    )
