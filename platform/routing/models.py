"""Business domains and the experts that they are mapped to."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _

from accounts.models import TeamOwned, User

CODE = r"^[a-z][a-z0-9_-]{1,11}$"
NUM_COLOURS = 5


def expert_list() -> ArrayField:
    """A column of expert numbers."""
    return ArrayField(models.PositiveSmallIntegerField(), default=list, blank=True)


class DomainMap(TeamOwned):
    """Which experts each domain may call its own, and who takes the rest."""

    name = models.CharField(_("name"), max_length=120)
    revision = models.PositiveIntegerField(default=1)
    num_experts = models.PositiveSmallIntegerField(
        _("experts per layer"), default=8, validators=[MinValueValidator(2), MaxValueValidator(1024)]
    )
    general_experts = expert_list()
    policy = models.JSONField(default=dict, blank=True, help_text="weights and prior of moe_core.spec.RoutingSpec")

    class Meta:
        verbose_name = _("domain map")
        verbose_name_plural = _("domain maps")
        constraints = [
            models.UniqueConstraint(fields=["team", "name"], name="one_map_name_per_team"),
            models.CheckConstraint(
                condition=models.Q(num_experts__gte=2, num_experts__lte=1024), name="map_num_experts_bounded"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} r{self.revision}"


class Domain(models.Model):
    """One business domain of a map."""

    map = models.ForeignKey(DomainMap, on_delete=models.CASCADE, related_name="domains")
    position = models.PositiveSmallIntegerField(default=0)
    code = models.CharField(_("code"), max_length=12)
    name_en = models.CharField(_("name in English"), max_length=80)
    name_zh = models.CharField(_("name in Chinese"), max_length=80)
    examples = models.JSONField(default=list, blank=True)
    experts = expert_list()
    colour = models.PositiveSmallIntegerField(
        default=1, validators=[MinValueValidator(1), MaxValueValidator(NUM_COLOURS)]
    )

    class Meta:
        ordering = ["position", "id"]
        constraints = [
            models.UniqueConstraint(fields=["map", "code"], name="one_domain_code_per_map"),
            models.CheckConstraint(condition=models.Q(code__regex=CODE), name="domain_code_shape"),
            models.CheckConstraint(
                condition=models.Q(colour__gte=1, colour__lte=NUM_COLOURS), name="domain_colour_known"
            ),
        ]

    def __str__(self) -> str:
        return self.code

    @property
    def name(self) -> str:
        """The name in the reader's language."""
        return self.name_zh if (get_language() or "en").startswith("zh") else self.name_en


class DomainMapRevision(models.Model):
    """One saved state of a map; rows are only ever added."""

    map = models.ForeignKey(DomainMap, on_delete=models.CASCADE, related_name="revisions")
    revision = models.PositiveIntegerField()
    snapshot = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["map", "revision"], name="one_row_per_map_revision")]

    def __str__(self) -> str:
        return f"{self.map.name} r{self.revision}"
