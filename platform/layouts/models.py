"""Expert layouts: how a dense version becomes a mixture, and every revision of that plan."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from accounts.models import TeamOwned, User
from moe_core.spec import LayoutSpec, ModelSpec
from registry.models import ModelVersion


class Layout(TeamOwned):
    """The present revision of a layout."""

    name = models.CharField(_("name"), max_length=120)
    base_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="layouts")
    revision = models.PositiveIntegerField(default=1)
    spec = models.JSONField(help_text="moe_core.spec.LayoutSpec")

    class Meta:
        verbose_name = _("expert layout")
        verbose_name_plural = _("expert layouts")
        constraints = [models.UniqueConstraint(fields=["team", "name"], name="one_layout_name_per_team")]

    def __str__(self) -> str:
        return f"{self.name} r{self.revision}"

    def layout_spec(self) -> LayoutSpec:
        """The layout as moe_core reads it."""
        return LayoutSpec.parse(self.spec)

    def model_spec(self) -> ModelSpec:
        """The mixture that this layout makes of its base."""
        return self.layout_spec().applied_to(ModelSpec.parse(self.base_version.spec))


class LayoutRevision(models.Model):
    """One saved state of a layout; rows are only ever added."""

    layout = models.ForeignKey(Layout, on_delete=models.CASCADE, related_name="revisions")
    revision = models.PositiveIntegerField()
    base_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    spec = models.JSONField()
    note = models.CharField(_("why"), max_length=400, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["layout", "revision"], name="one_row_per_layout_revision")]

    def __str__(self) -> str:
        return f"{self.layout.name} r{self.revision}"
