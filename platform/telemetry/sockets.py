"""/ws/board/<deployment id>/: the live board."""

from __future__ import annotations

from typing import Any

from channels.db import database_sync_to_async
from django.urls import re_path

from accounts.access import Role
from accounts.live import LiveSocket
from deployments.models import Deployment
from deployments.selectors import deployment_get
from telemetry.boards import topic_of
from telemetry.selectors import board_snapshot


class BoardSocket(LiveSocket):
    """A member of the team watches a deployment's experts."""

    role = Role.VIEWER

    async def topic(self) -> str:
        """The board's topic; NotFound for another team's."""
        return topic_of((await self.find()).pk)

    async def snapshot(self) -> dict[str, Any]:
        """The whole picture, from PostgreSQL."""
        return await database_sync_to_async(board_snapshot)(await self.find())

    @database_sync_to_async
    def find(self) -> Deployment:
        """Read the deployment anew."""
        return deployment_get(self.caller.team, int(self.scope["url_route"]["kwargs"]["pk"]))


websocket_urlpatterns: list[Any] = [re_path(r"^ws/board/(?P<pk>\d{1,18})/$", BoardSocket.as_asgi())]
