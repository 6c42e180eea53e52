"""Every WebSocket address: each app that has sockets lists them in its `sockets.py`."""

from __future__ import annotations

from deployments.sockets import websocket_urlpatterns as deployments
from jobs.sockets import websocket_urlpatterns as jobs
from telemetry.sockets import websocket_urlpatterns as telemetry

websocket_urlpatterns = [*jobs, *deployments, *telemetry]
