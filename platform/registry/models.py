"""Models, their immutable versions, and the artifacts that hold the bytes."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _

from accounts.models import Team, TeamOwned, User

SHA256 = r"^[0-9a-f]{64}$"


class Artifact(models.Model):
    """One object of the store. `touched_at` moves on each put, so that a fresh object outlives the collector."""

    sha256 = models.CharField(max_length=64, primary_key=True)
    size_bytes = models.PositiveBigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    touched_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(sha256__regex=SHA256), name="artifact_named_by_sha256")
        ]

    def __str__(self) -> str:
        return self.sha256[:12]


class Model(TeamOwned):
    """A named line of versions that belongs to a team."""

    name = models.CharField(_("name"), max_length=120)
    slug = models.SlugField(max_length=60)
    description = models.TextField(_("description"), blank=True, max_length=4000)
    licence = models.CharField(_("licence"), max_length=120, blank=True)
    source = models.CharField(_("source"), max_length=500, blank=True)

    class Meta:
        verbose_name = _("model")
        verbose_name_plural = _("models")
        constraints = [models.UniqueConstraint(fields=["team", "slug"], name="one_model_slug_per_team")]

    def __str__(self) -> str:
        return self.name


class VersionState(models.TextChoices):
    """Whether a version's bytes can be trusted."""

    READY = "ready", _("ready")
    FAILED = "failed", _("bytes damaged")


class ModelVersion(models.Model):
    """What was imported or built, once and for ever: a trigger refuses changes of everything but state and note."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=VersionState.choices, default=VersionState.READY)
    spec = models.JSONField(help_text="moe_core.spec.ModelSpec")
    files = models.JSONField(help_text='{name: {"sha256": …, "bytes": …}}')
    inspection = models.JSONField(default=dict)
    size_bytes = models.PositiveBigIntegerField()
    parent = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="children"
    )
    lineage = models.JSONField(default=dict)
    report = models.JSONField(default=dict)
    note = models.CharField(_("note"), max_length=400, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    verified_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("model version")
        verbose_name_plural = _("model versions")
        constraints = [
            models.UniqueConstraint(fields=["model", "number"], name="one_version_per_number"),
            models.CheckConstraint(
                condition=models.Q(state__in=VersionState.values), name="version_state_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model.name} v{self.number}"

    @property
    def team(self) -> Team:
        """The owner, as the model's."""
        return self.model.team

    @property
    def label(self) -> str:
        """How a version is called beside its model: v3."""
        return f"v{self.number}"

    @property
    def num_experts(self) -> int:
        """Experts in each MoE layer; 0 for a dense model."""
        moe: dict[str, Any] | None = self.spec.get("moe")
        return int(moe["num_experts"]) if moe else 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have experts."""
        moe: dict[str, Any] | None = self.spec.get("moe")
        return tuple(moe["moe_layers"]) if moe else ()

    @property
    def gate(self) -> str:
        """The kind of its gate; empty for none."""
        moe: dict[str, Any] | None = self.spec.get("moe")
        return str(moe.get("gate", {}).get("kind", "softmax_topk")) if moe else ""

    @property
    def is_dense(self) -> bool:
        """Whether an expert layout can be laid over it."""
        return self.spec.get("moe") is None


class Alias(models.Model):
    """A name that points at one version of a model and may be moved: champion, challenger."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="aliases")
    name = models.SlugField(max_length=40)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="aliases")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = _("alias")
        verbose_name_plural = _("aliases")
        constraints = [models.UniqueConstraint(fields=["model", "name"], name="one_alias_per_name")]

    def __str__(self) -> str:
        return f"{self.model.slug}@{self.name}"

    def clean(self) -> None:
        """An alias points at a version of its own model."""
        if self.version_id and self.version.model_id != self.model_id:
            raise ValidationError({"version": _("This version belongs to another model.")})


class UploadKind(models.TextChoices):
    """Formats that are taken; each is data only and recognised by its bytes, not by its name."""

    GGUF = "gguf", "GGUF"
    SAFETENSORS = "safetensors", "safetensors"
    JSON = "json", "JSON"
    JSONL = "jsonl", "JSON Lines"
    CSV = "csv", "CSV"


class Upload(TeamOwned):
    """A file that somebody sent, kept in the store until it is imported or read."""

    name = models.CharField(_("file name"), max_length=200)
    kind = models.CharField(max_length=12, choices=UploadKind.choices)
    artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="+")
    size_bytes = models.PositiveBigIntegerField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(kind__in=UploadKind.values), name="upload_kind_known")
        ]

    def __str__(self) -> str:
        return self.name
