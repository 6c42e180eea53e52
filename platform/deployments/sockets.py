"""/ws/deployments/<id>/: tells that something changed; the page fetches what is true, in its own language."""

from __future__ import annotations

from typing import Any

from channels.db import database_sync_to_async
from django.urls import re_path

from accounts.access import Role
from accounts.live import LiveSocket
from deployments.announce import topic_of
from deployments.models import Deployment
from deployments.selectors import deployment_get, standing_of


class DeploymentSocket(LiveSocket):
    """A member of the team watches one of its deployments."""

    role = Role.VIEWER

    async def topic(self) -> str:
        """The deployment's topic; NotFound for one of another team."""
        found = await self.find()
        return topic_of(found.pk)

    async def snapshot(self) -> dict[str, Any]:
        """The state in codes."""
        found = await self.find()
        return {"seq": found.frames, "deployment": found.pk, **await database_sync_to_async(state_of)(found)}

    @database_sync_to_async
    def find(self) -> Deployment:
        """Read the row anew."""
        return deployment_get(self.caller.team, int(self.scope["url_route"]["kwargs"]["pk"]))


def state_of(deployment: Deployment) -> dict[str, Any]:
    """What a program wants to know at once."""
    standing = standing_of(deployment)
    return {
        "phase": standing.phase.value,
        "ready": standing.ready,
        "wanted": standing.wanted,
        "live_version": deployment.live_version_id,
        "generation": deployment.generation,
        "observed_generation": deployment.observed_generation,
    }


websocket_urlpatterns: list[Any] = [
    re_path(r"^ws/deployments/(?P<pk>\d{1,18})/$", DeploymentSocket.as_asgi())
]
