"""REST routes of the telemetry app."""

from __future__ import annotations

from django.urls import path

from telemetry.rest import RoutingView

urlpatterns = [path("deployments/<int:pk>/routing/", RoutingView.as_view(), name="deployment-routing")]
