"""Model bases, leases and the outbox: what every app stands on."""

from __future__ import annotations

from django.db import models


class Timestamped(models.Model):
    """A row that knows when it was made and last changed."""

    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True


class Lease(models.Model):
    """Who may work on a resource now. `epoch` only grows, so that a late holder can be told from the present one.

    All times are the database's (`now()`): clocks of workers are never compared.
    """

    resource = models.CharField(max_length=200, primary_key=True)
    holder = models.CharField(max_length=200, null=True)  # noqa: DJ001 - NULL is "free", in SQL as well
    epoch = models.BigIntegerField(default=0)
    heartbeat_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.resource} #{self.epoch} ({self.holder or 'free'})"


class OutboxEvent(models.Model):
    """Something to tell, written in the transaction that made it true. The relay delivers it at least once."""

    topic = models.CharField(max_length=80)
    payload = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)
    attempts = models.PositiveIntegerField(default=0)
    not_before = models.DateTimeField(auto_now_add=True)
    delivered_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=500, blank=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["not_before", "id"], name="outbox_due", condition=models.Q(delivered_at=None)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.topic} #{self.pk}"


class IdempotentReply(models.Model):
    """The answer once given to an `Idempotency-Key`, so that a retried POST creates nothing twice."""

    caller = models.CharField(max_length=100)
    key = models.CharField(max_length=255)
    request_hash = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True)
    body = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["caller", "key"], name="one_reply_per_key")]

    def __str__(self) -> str:
        return f"{self.caller} {self.key}"
