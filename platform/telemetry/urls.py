"""Pages of the telemetry app, and Prometheus' door."""

from __future__ import annotations

from django.urls import path

from telemetry import views
from telemetry.rest import MetricsView

app_name = "telemetry"
urlpatterns = [
    path("live/", views.live, name="live"),
    path("live/<int:pk>/", views.board, name="board"),
    path("metrics", MetricsView.as_view(), name="metrics"),
]
