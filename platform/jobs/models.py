"""Jobs, what they told on their way, and the states that they can go on from."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from accounts.models import TeamOwned
from jobs.choices import ENDED, LAMPS, OPEN, RETRYABLE, JobKind, JobState
from jobs.reasons import error_told
from registry.models import Artifact, ModelVersion
from registry.operated import operation_title

MAX_ATTEMPTS = 3
# The operation that changes nothing.
MEASURE = "measure"


class Job(TeamOwned):
    """One piece of long work. `spec` is what was asked; `inputs` is what that meant on the day it was asked."""

    kind = models.CharField(_("kind"), max_length=10, choices=JobKind.choices)
    name = models.CharField(_("name"), max_length=120)
    state = models.CharField(_("state"), max_length=12, choices=JobState.choices, default=JobState.QUEUED)
    spec = models.JSONField(default=dict)
    inputs = models.JSONField(default=dict)
    result = models.JSONField(default=dict, blank=True)
    error_code = models.CharField(max_length=60, blank=True)
    error = models.CharField(_("reason"), max_length=1000, blank=True)
    log_tail = models.TextField(blank=True)

    stage = models.CharField(max_length=30, blank=True)
    progress = models.FloatField(default=0.0)
    last_seq = models.PositiveIntegerField(default=0)

    attempts = models.PositiveSmallIntegerField(default=0)
    not_before = models.DateTimeField(null=True, blank=True)
    rung_at = models.DateTimeField(null=True, blank=True)
    epoch = models.BigIntegerField(default=0)
    holder = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    base_version = models.ForeignKey(
        ModelVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    result_version = models.ForeignKey(
        ModelVersion, on_delete=models.SET_NULL, null=True, blank=True, related_name="made_by"
    )
    cloned_from = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="clones"
    )

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=JobKind.values), name="job_kind_known"),
            models.CheckConstraint(condition=Q(state__in=JobState.values), name="job_state_known"),
            models.CheckConstraint(
                condition=Q(progress__gte=0, progress__lte=1), name="job_progress_is_a_share"
            ),
            models.CheckConstraint(
                condition=Q(state__in=ENDED, ended_at__isnull=False)
                | Q(state__in=OPEN, ended_at__isnull=True),
                name="job_end_told_once_ended",
            ),
            models.CheckConstraint(
                condition=~Q(state=JobState.SUCCEEDED) | Q(error=""), name="job_success_has_no_error"
            ),
        ]
        indexes = [
            models.Index(fields=["team", "-id"], name="job_by_team"),
            models.Index(fields=["state"], name="job_open", condition=Q(state__in=OPEN)),
        ]

    @property
    def is_preview(self) -> bool:
        """Whether it is an operation that is only tried: measured, and nothing kept."""
        return bool(self.inputs.get("operate", {}).get("preview"))

    @property
    def is_measuring(self) -> bool:
        """Whether it only measures a version as it is."""
        asked = self.inputs.get("operate", {}).get("operation", {})
        return bool(asked.get("kind") == MEASURE)

    @property
    def keeps_nothing(self) -> bool:
        """Whether no version comes of it, only a report."""
        return self.is_preview or self.is_measuring

    def __str__(self) -> str:
        return f"{self.name} #{self.pk}"

    @property
    def kind_words(self) -> str:
        """What it does, in the reader's language; of operations on experts the one that it is."""
        asked = self.inputs.get("operate", {}).get("operation", {}).get("kind")
        return operation_title(asked) if asked else str(self.get_kind_display())

    @property
    def problem(self) -> str:
        """Why it failed, in the reader's language; "" for nothing."""
        return error_told(self.kind, self.error)

    @property
    def resource(self) -> str:
        """The name of the lease on this job."""
        return f"job:{self.pk}"

    @property
    def topic(self) -> str:
        """The live topic of this job."""
        return f"job:{self.pk}"

    @property
    def lamp(self) -> str:
        """The lamp of its state."""
        return LAMPS.get(JobState(self.state), "off")

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in ENDED

    @property
    def can_cancel(self) -> bool:
        """Whether it can still be stopped for good."""
        return self.state in (JobState.QUEUED, JobState.RUNNING, JobState.PAUSING, JobState.PAUSED)

    @property
    def can_pause(self) -> bool:
        """Whether it can be halted and gone on with later."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    @property
    def can_resume(self) -> bool:
        """Whether somebody halted it."""
        return self.state == JobState.PAUSED

    @property
    def can_retry(self) -> bool:
        """Whether it ended without a result."""
        return self.state in RETRYABLE


class JobArtifact(models.Model):
    """A file that a job reads; the row keeps the store from collecting it."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="artifacts")
    name = models.CharField(max_length=60)
    artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="+")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "name"], name="one_artifact_per_input_name")]

    def __str__(self) -> str:
        return f"{self.job_id}/{self.name}"


class JobEvent(models.Model):
    """Something that a job told. `seq` has no gaps within a job, so that a reader knows when it missed one."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    seq = models.PositiveIntegerField()
    kind = models.CharField(max_length=20)
    payload = models.JSONField(default=dict)
    epoch = models.BigIntegerField(default=0)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["seq"]
        constraints = [models.UniqueConstraint(fields=["job", "seq"], name="one_event_per_seq")]

    def __str__(self) -> str:
        return f"{self.job_id}.{self.seq} {self.kind}"


class Checkpoint(models.Model):
    """A complete state on a worker's disk that a job can go on from; only the holder of the lease may add one."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="checkpoints")
    node = models.CharField(max_length=100)
    path = models.CharField(max_length=500)
    stage = models.CharField(max_length=30)
    step = models.PositiveIntegerField()
    sha256 = models.CharField(max_length=64)
    epoch = models.BigIntegerField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.job_id} {self.stage} {self.step}"
