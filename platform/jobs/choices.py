"""The words of a job: its kinds and its states, and which state may follow which."""

from __future__ import annotations

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy


class JobKind(TextChoices):
    """What a job does."""

    IMPORT = "import", _("Import a model")
    TUNE = "tune", _("Build and tune")
    OPERATE = "operate", _("Change the experts")


class JobState(TextChoices):
    """Where a job stands."""

    QUEUED = "queued", pgettext_lazy("state of a job", "waiting for a worker")
    RUNNING = "running", pgettext_lazy("state of a job", "running")
    PAUSING = "pausing", pgettext_lazy("state of a job", "pausing after this step")
    PAUSED = "paused", pgettext_lazy("state of a job", "paused")
    CANCELLING = "cancelling", pgettext_lazy("state of a job", "cancelling after this step")
    CANCELLED = "cancelled", pgettext_lazy("state of a job", "cancelled")
    SUCCEEDED = "succeeded", pgettext_lazy("state of a job", "succeeded")
    FAILED = "failed", pgettext_lazy("state of a job", "failed")
    QUARANTINED = "quarantined", pgettext_lazy("state of a job", "set aside")


# A worker holds the lease of a job in one of these.
HELD = (JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING)
# Nothing more happens by itself to a job in one of these.
ENDED = (JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED, JobState.QUARANTINED)
OPEN = (JobState.QUEUED, *HELD, JobState.PAUSED)
RETRYABLE = (JobState.CANCELLED, JobState.FAILED, JobState.QUARANTINED)

LAMPS = {
    JobState.RUNNING: "busy",
    JobState.PAUSING: "busy",
    JobState.CANCELLING: "busy",
    JobState.PAUSED: "caution",
    JobState.SUCCEEDED: "ok",
    JobState.FAILED: "danger",
    JobState.QUARANTINED: "danger",
}
