"""Jobs in Django's admin, to read only: a state changed by hand would skip its event and its lease."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from jobs.models import Checkpoint, Job, JobEvent


class ToRead(admin.ModelAdmin):
    """Rows that only the platform may change."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """No."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False


@admin.register(Job)
class JobAdmin(ToRead):
    """Jobs of all teams."""

    list_display = [
        "id",
        "name",
        "kind",
        "team",
        "state",
        "stage",
        "attempts",
        "epoch",
        "holder",
        "created_at",
    ]
    list_filter = ["state", "kind"]
    search_fields = ["name", "error"]
    list_select_related = ["team"]


@admin.register(JobEvent)
class JobEventAdmin(ToRead):
    """What jobs told."""

    list_display = ["job", "seq", "kind", "epoch", "at"]
    list_filter = ["kind"]
    list_select_related = ["job"]


@admin.register(Checkpoint)
class CheckpointAdmin(ToRead):
    """Accepted checkpoints."""

    list_display = ["job", "stage", "step", "node", "epoch", "at"]
    list_select_related = ["job"]
