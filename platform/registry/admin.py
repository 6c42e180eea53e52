"""The registry in Django's admin: names and aliases may be kept, what is immutable can only be read."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from registry.models import Alias, Artifact, Model, ModelVersion, Upload


class ReadOnly(admin.ModelAdmin):
    """Rows that nobody may change by hand."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """No."""
        return False


class AliasInline(admin.TabularInline):
    """Aliases of a model; each may only point at a version of that model."""

    model = Alias
    extra = 0
    autocomplete_fields = ["version"]


@admin.register(Model)
class ModelAdmin(admin.ModelAdmin):
    """Models: what is said about them, their aliases."""

    list_display = ["name", "team", "licence", "num_versions", "created_at"]
    list_filter = ["team"]
    search_fields = ["name", "slug", "description"]
    readonly_fields = ["team", "slug", "created_by", "created_at", "updated_at"]
    inlines = [AliasInline]

    @admin.display(description="versions")
    def num_versions(self, model: Model) -> int:
        """How many versions there are."""
        return model.versions.count()

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """An import makes models."""
        return False


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnly):
    """Versions never change."""

    list_display = ["model", "number", "state", "size_bytes", "created_by", "created_at", "verified_at"]
    list_filter = ["state", "model__team"]
    search_fields = ["model__name", "note"]


@admin.register(Artifact)
class ArtifactAdmin(ReadOnly):
    """Objects of the store."""

    list_display = ["sha256", "size_bytes", "created_at", "touched_at"]
    search_fields = ["sha256"]


@admin.register(Upload)
class UploadAdmin(ReadOnly):
    """Files that were sent."""

    list_display = ["name", "kind", "team", "size_bytes", "created_by", "created_at"]
    list_filter = ["kind", "team"]
    search_fields = ["name"]
