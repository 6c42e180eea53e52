"""What was used, and how much may be."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import ApiToken, Team
from deployments.models import Deployment


class Usage(models.Model):
    """One request that an engine answered, or that met an outage: no engine, a full one, no database."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    token = models.ForeignKey(ApiToken, on_delete=models.SET_NULL, null=True, related_name="+")
    deployment = models.ForeignKey(Deployment, on_delete=models.SET_NULL, null=True, related_name="+")
    version_id = models.BigIntegerField()
    request_id = models.CharField(max_length=64, unique=True)
    path = models.CharField(max_length=40)
    domain = models.CharField(max_length=12, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    finish_reason = models.CharField(max_length=20)
    first_token_ms = models.FloatField(null=True)
    total_ms = models.FloatField(null=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [
            models.Index(fields=["team", "-at"], name="usage_by_team"),
            models.Index(fields=["token", "-at"], name="usage_by_token"),
            models.Index(fields=["deployment", "-at"], name="usage_by_deployment"),
        ]

    def __str__(self) -> str:
        return self.request_id


class Quota(models.Model):
    """Tokens of one key in one month: what is used, and what running requests may still use."""

    token = models.ForeignKey(ApiToken, on_delete=models.CASCADE, related_name="quotas")
    month = models.DateField()
    used = models.BigIntegerField(default=0)
    reserved = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["token", "month"], name="one_quota_per_month"),
            models.CheckConstraint(condition=Q(used__gte=0) & Q(reserved__gte=0), name="quota_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.token_id} {self.month:%Y-%m}"


class Reservation(models.Model):
    """What one running request may use at most; a sweeper gives back those that a crash left behind."""

    quota = models.ForeignKey(Quota, on_delete=models.CASCADE, related_name="reservations")
    request_id = models.CharField(max_length=64, unique=True)
    tokens = models.PositiveIntegerField()
    expires_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["expires_at"], name="reservation_expiry")]

    def __str__(self) -> str:
        return self.request_id
