"""/ws/jobs/<id>/: one job, live."""

from __future__ import annotations

from typing import Any

from channels.db import database_sync_to_async
from django.urls import re_path

from accounts.access import Role
from accounts.live import LiveSocket
from jobs.models import Job
from jobs.selectors import job_get
from jobs.snapshot import snapshot_of


class JobSocket(LiveSocket):
    """A member of the team watches one of its jobs."""

    role = Role.VIEWER
    job: Job

    async def topic(self) -> str:
        """The job's topic; NotFound for a job of another team."""
        self.job = await database_sync_to_async(job_get)(
            self.caller.team, int(self.scope["url_route"]["kwargs"]["pk"])
        )
        return self.job.topic

    async def snapshot(self) -> dict[str, Any]:
        """The whole state."""
        return await database_sync_to_async(snapshot_of)(self.job)


websocket_urlpatterns: list[Any] = [re_path(r"^ws/jobs/(?P<pk>\d{1,18})/$", JobSocket.as_asgi())]
