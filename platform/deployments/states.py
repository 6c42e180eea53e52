"""The words for what a replica is, what is wanted of it, and what a deployment amounts to."""

from __future__ import annotations

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class ReplicaState(TextChoices):
    """What the node agent saw of one replica."""

    PENDING = "pending", _("Waiting for its node")
    STARTING = "starting", _("Starting")
    LOADING = "loading", _("Loading weights")
    WARMING = "warming", _("Warming up")
    READY = "ready", _("Ready")
    DRAINING = "draining", _("Draining")
    STOPPED = "stopped", _("Stopped")
    FAILED = "failed", _("Failed")


ALIVE = (
    ReplicaState.PENDING,
    ReplicaState.STARTING,
    ReplicaState.LOADING,
    ReplicaState.WARMING,
    ReplicaState.READY,
    ReplicaState.DRAINING,
)
ENDED = (ReplicaState.STOPPED, ReplicaState.FAILED)
COMING = (ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.LOADING, ReplicaState.WARMING)


class Wanted(TextChoices):
    """What the reconciler wants of a replica; only it writes this word."""

    RUN = "run", _("run")
    DRAIN = "drain", _("drain and stop")


class Phase(TextChoices):
    """What a deployment amounts to. Derived from its replicas, never stored."""

    PENDING = "pending", _("Pending")
    STARTING = "starting", _("Starting")
    READY = "ready", _("Serving")
    UPDATING = "updating", _("Serving, new version starting")
    DEGRADED = "degraded", _("Serving, replicas missing")
    BLOCKED = "blocked", _("Serving, new version failed")
    FAILED = "failed", _("Failed")
    STOPPING = "stopping", _("Stopping")
    STOPPED = "stopped", _("Stopped")
