"""Rollups of what engines counted, the last counters of each engine, and the head of each board."""

from __future__ import annotations

from django.db import models

from deployments.models import Deployment

RESOLUTIONS_S = (1, 10, 60)


class Tally(models.Model):
    """What was counted: packed arrays beside plain figures. The shape of `counts` is
    [phase][domain][layer][expert], that of `reach` [phase][domain][visits, hits]; little-endian uint64, deflated."""

    phases = models.JSONField(default=list)
    domains = models.JSONField(default=list)
    layers = models.JSONField(default=list)
    num_experts = models.PositiveIntegerField(default=0)
    counts = models.BinaryField(default=bytes)
    reach = models.BinaryField(default=bytes)
    prompt_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reused_tokens = models.BigIntegerField(default=0)
    # Packed uint32 histograms; the edges are in telemetry.latency.
    first_token = models.BinaryField(default=bytes)
    inter_token = models.BinaryField(default=bytes)

    class Meta:
        abstract = True


class Rollup(Tally):
    """One bucket of time of one deployed version, at 1 s, 10 s or 1 min."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="+")
    version = models.ForeignKey("registry.ModelVersion", on_delete=models.CASCADE, related_name="+")
    resolution_s = models.PositiveSmallIntegerField()
    start_s = models.BigIntegerField(help_text="Seconds since 1970, a multiple of the resolution.")
    running = models.PositiveIntegerField(default=0)
    waiting = models.PositiveIntegerField(default=0)
    kv_share = models.FloatField(default=0.0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["deployment", "resolution_s", "start_s", "version"], name="one_rollup_per_bucket"
            ),
        ]
        indexes = [models.Index(fields=["resolution_s", "start_s"], name="rollup_retention")]

    def __str__(self) -> str:
        return f"{self.deployment_id} {self.start_s}/{self.resolution_s}"


class EngineCounter(Tally):
    """The last cumulative sample of one engine process: the next one minus this is what happened between.

    Samples are cumulative so that a lost one heals and a repeated one adds nothing.
    """

    replica = models.ForeignKey("deployments.Replica", on_delete=models.CASCADE, related_name="+")
    epoch = models.PositiveBigIntegerField()
    seq = models.BigIntegerField(default=0)
    at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["replica", "epoch"], name="one_counter_per_engine"),
        ]

    def __str__(self) -> str:
        return f"{self.replica_id}/{self.epoch} #{self.seq}"


class Board(Tally):
    """The head of a deployment's live board: the number of its last frame, when the newest sample in it was taken (by its
    engine's clock), and totals since it was made."""

    deployment = models.OneToOneField(Deployment, on_delete=models.CASCADE, related_name="board")
    seq = models.BigIntegerField(default=0)
    at = models.DateTimeField(null=True)
    sampled_ms = models.BigIntegerField(null=True)
    gauges = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"{self.deployment_id} #{self.seq}"
