"""Deployments in Django's admin, to read: they are changed through their services alone."""

from __future__ import annotations

from django.contrib import admin

from accounts.admin import ReadOnlyAdmin
from deployments.models import Deployment, DeploymentEvent, DeploymentRevision, Node, Replica


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    """What is desired, and what is live."""

    list_display = [
        "name",
        "team",
        "desired_version",
        "desired_replicas",
        "live_version",
        "revision",
        "deleted_at",
    ]
    search_fields = ["name"]


@admin.register(DeploymentRevision)
class DeploymentRevisionAdmin(ReadOnlyAdmin):
    """What was wanted over time."""

    list_display = ["deployment", "number", "version", "created_at", "created_by", "note"]


@admin.register(Replica)
class ReplicaAdmin(ReadOnlyAdmin):
    """Engines."""

    list_display = [
        "id",
        "deployment",
        "version",
        "node",
        "wanted",
        "state",
        "epoch",
        "restarts",
        "heartbeat_at",
    ]
    list_filter = ["state", "node"]


@admin.register(DeploymentEvent)
class DeploymentEventAdmin(ReadOnlyAdmin):
    """Timelines."""

    list_display = ["at", "deployment", "kind", "actor"]


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    """Machines."""

    list_display = ["name", "heartbeat_at"]
