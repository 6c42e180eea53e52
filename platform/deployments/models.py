"""Deployments: what is desired, what was revised, what runs, and what happened."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from accounts.models import TeamOwned, User
from common.models import Timestamped
from deployments.states import ALIVE, ReplicaState, Wanted

MAX_REPLICAS = 8
NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,58}[a-z0-9])?$"


class Node(models.Model):
    """One machine whose worker runs engines. Its agent holds the lease `node:<name>`."""

    name = models.CharField(max_length=63, unique=True)
    heartbeat_at = models.DateTimeField(null=True)
    capacity = models.JSONField(default=dict)

    def __str__(self) -> str:
        return self.name


class Deployment(TeamOwned):
    """A name that a team's clients call, and what is wanted behind it. The reconciler writes the observed part.

    `revision` counts changes that need other engines (version, domains, settings); `generation` counts every change.
    `live_version` with `live_revision` is the one row that sends requests to a version.
    """

    name = models.CharField(_("name"), max_length=60)
    desired_version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="+")
    desired_replicas = models.PositiveSmallIntegerField(_("replicas"), default=1)
    domain_map = models.ForeignKey(
        "routing.DomainMap", on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # The domains as they were when this revision was made: a RoutingSpec, or {} for none.
    domains = models.JSONField(default=dict, blank=True)
    settings = models.JSONField(default=dict, blank=True)
    revision = models.PositiveIntegerField(default=1)
    generation = models.PositiveBigIntegerField(default=1)

    observed_generation = models.PositiveBigIntegerField(default=0)
    live_version = models.ForeignKey(
        "registry.ModelVersion", on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    live_revision = models.PositiveIntegerField(null=True, blank=True)
    conditions = models.JSONField(default=list, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)
    # The number of the last live frame.
    frames = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["team", "name"], condition=Q(deleted_at=None), name="one_deployment_name_per_team"
            ),
            models.CheckConstraint(
                condition=Q(name__regex=NAME_PATTERN), name="deployment_name_is_a_model_id"
            ),
            models.CheckConstraint(
                condition=Q(desired_replicas__lte=MAX_REPLICAS), name="deployment_replicas_bounded"
            ),
            models.CheckConstraint(
                condition=Q(live_version=None, live_revision=None)
                | Q(live_version__isnull=False, live_revision__isnull=False),
                name="deployment_live_row_is_whole",
            ),
            models.CheckConstraint(
                condition=Q(observed_generation__lte=models.F("generation")),
                name="deployment_observes_the_past",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class DeploymentRevision(models.Model):
    """What was wanted at one time; a trigger refuses UPDATE and DELETE. A roll-back adds a revision."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="revisions")
    number = models.PositiveIntegerField()
    version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="+")
    domains = models.JSONField(default=dict, blank=True)
    domain_map = models.ForeignKey(
        "routing.DomainMap", on_delete=models.DO_NOTHING, null=True, related_name="+", db_constraint=False
    )
    settings = models.JSONField(default=dict, blank=True)
    note = models.CharField(max_length=200, blank=True)
    rolled_back_to = models.PositiveIntegerField(null=True, blank=True)
    created_by = models.ForeignKey(
        User, on_delete=models.DO_NOTHING, null=True, related_name="+", db_constraint=False
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["deployment", "number"], name="one_revision_per_number"),
        ]

    def __str__(self) -> str:
        return f"{self.deployment} r{self.number}"


class Replica(Timestamped):
    """One engine process: the reconciler writes `wanted` and `node`, the node's agent all that is observed."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="replicas")
    version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="+")
    revision = models.PositiveIntegerField()
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="replicas")
    wanted = models.CharField(max_length=8, choices=Wanted.choices, default=Wanted.RUN)

    state = models.CharField(max_length=10, choices=ReplicaState.choices, default=ReplicaState.PENDING)
    # Grows with every engine process; an engine refuses requests that carry another one.
    epoch = models.PositiveBigIntegerField(default=0)
    address = models.CharField(max_length=200, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    restarts = models.PositiveIntegerField(default=0)
    error = models.CharField(max_length=60, blank=True)
    error_detail = models.CharField(max_length=500, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)
    stopped_at = models.DateTimeField(null=True, blank=True)
    timings = models.JSONField(default=dict, blank=True)
    stats = models.JSONField(default=dict, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(state__in=ReplicaState.values), name="replica_state_known"),
            models.CheckConstraint(condition=Q(wanted__in=Wanted.values), name="replica_wanted_known"),
            models.CheckConstraint(
                condition=~Q(state=ReplicaState.READY) | ~Q(address=""), name="replica_ready_has_address"
            ),
        ]
        indexes = [
            models.Index(
                fields=["deployment", "state"], name="replica_alive", condition=Q(state__in=list(ALIVE))
            ),
            models.Index(fields=["node"], name="replica_of_node", condition=Q(state__in=list(ALIVE))),
        ]

    def __str__(self) -> str:
        return f"{self.deployment} #{self.pk}"


class DeploymentEvent(models.Model):
    """One line of a deployment's timeline; `kind` and `detail` become a sentence in the reader's language."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(auto_now_add=True)
    kind = models.CharField(max_length=40)
    detail = models.JSONField(default=dict, blank=True)
    actor = models.CharField(max_length=200, blank=True)

    class Meta:
        indexes = [models.Index(fields=["deployment", "-id"], name="deployment_timeline")]

    def __str__(self) -> str:
        return f"{self.deployment} {self.kind}"
