"""What REST reads and answers about deployments: closed bodies in, what is desired and observed out."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field, inline_serializer
from rest_framework import serializers

from common.closed import Closed
from deployments.models import MAX_REPLICAS, Deployment, DeploymentEvent, DeploymentRevision, Replica
from deployments.selectors import is_silent, shown_replicas, standing_of
from deployments.sentences import condition_sentence, event_sentence
from deployments.states import Phase


class DeploymentIn(Closed):
    """A new deployment."""

    name = serializers.CharField(max_length=60, help_text="What clients send as `model`.")
    version = serializers.IntegerField(min_value=1)
    replicas = serializers.IntegerField(min_value=0, max_value=MAX_REPLICAS, default=1)
    domain_map = serializers.IntegerField(min_value=1, required=False, allow_null=True)
    translate_domains = serializers.BooleanField(
        default=False,
        help_text="The map's numbers are those of the version that was tuned with it; find its experts in this one.",
    )
    confirm_domains = serializers.BooleanField(
        default=False, help_text="Serve without mapped experts that the version has no more (`experts_gone`)."
    )
    settings = serializers.JSONField(required=False, default=dict)
    note = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)


class DeploymentChange(Closed):
    """What should be different; what is left out stays. A new version, map or settings make a revision.

    Domains that stay follow their experts to the numbers that these have in the new version. What would change nothing is
    refused: a note without a revision, `translate_domains` without a map.
    """

    version = serializers.IntegerField(min_value=1, required=False)
    replicas = serializers.IntegerField(min_value=0, max_value=MAX_REPLICAS, required=False)
    domain_map = serializers.IntegerField(min_value=1, required=False, allow_null=True)
    translate_domains = serializers.BooleanField(
        default=False,
        help_text="The map's numbers are those of the version that was tuned with it; find its experts in this one.",
    )
    confirm_domains = serializers.BooleanField(
        default=False, help_text="Serve without mapped experts that the version has no more (`experts_gone`)."
    )
    settings = serializers.JSONField(
        required=False,
        help_text="The settings that should be different; those left out stay. null takes back one that need not be set.",
    )
    note = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)
    expected_generation = serializers.IntegerField(min_value=1, required=False)


class ScaleIn(Closed):
    """How many replicas."""

    replicas = serializers.IntegerField(min_value=0, max_value=MAX_REPLICAS)


class RollbackIn(Closed):
    """Which revision to want again."""

    revision = serializers.IntegerField(min_value=1)


class FitIn(Closed):
    """What would be served, and how."""

    version = serializers.IntegerField(min_value=1)
    settings = serializers.JSONField(required=False, default=dict)


NEED = ("weights", "cache", "engine", "packing", "device", "total")
FitOut = inline_serializer(
    "Fit",
    {
        "need": inline_serializer("MemoryNeed", {name: serializers.IntegerField() for name in NEED}),
        "node": serializers.CharField(),
        "free_bytes": serializers.IntegerField(),
        "fits": serializers.BooleanField(),
    },
)


class ConditionOut(serializers.Serializer):
    """Something that holds now, with the reason as a code and as a sentence."""

    type = serializers.CharField()
    status = serializers.ChoiceField(choices=["true", "false", "unknown"])
    reason = serializers.CharField()
    message = serializers.CharField()
    since = serializers.DateTimeField()


class ReplicaOut(serializers.ModelSerializer):
    """One engine as its node's agent sees it."""

    node = serializers.CharField(source="node.name", read_only=True)
    version = serializers.IntegerField(source="version_id", read_only=True)
    silent = serializers.SerializerMethodField()

    class Meta:
        model = Replica
        fields = [
            "id", "version", "revision", "node", "wanted", "state", "silent", "epoch", "restarts", "error",
            "error_detail", "heartbeat_at", "ready_at", "timings", "stats", "created_at",
        ]  # fmt: skip
        read_only_fields = fields

    def get_silent(self, replica: Replica) -> bool:
        """Whether nothing was heard of it for too long."""
        return is_silent(replica)


class DeploymentOut(serializers.ModelSerializer):
    """A deployment: what is desired, what is observed, and what both amount to."""

    url = serializers.SerializerMethodField()
    phase = serializers.SerializerMethodField()
    phase_words = serializers.SerializerMethodField()
    ready_replicas = serializers.SerializerMethodField()
    desired_version = serializers.IntegerField(source="desired_version_id", read_only=True)
    live_version = serializers.IntegerField(source="live_version_id", read_only=True, allow_null=True)
    domain_map = serializers.IntegerField(source="domain_map_id", read_only=True, allow_null=True)
    domains = serializers.SerializerMethodField()

    class Meta:
        model = Deployment
        fields = [
            "id", "url", "name", "phase", "phase_words", "desired_version", "desired_replicas", "revision",
            "generation", "live_version", "live_revision", "observed_generation", "ready_replicas", "domain_map",
            "domains", "settings", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(OpenApiTypes.URI_REF)
    def get_url(self, deployment: Deployment) -> str:
        """Where this deployment is found."""
        return reverse("deployment-detail", args=[deployment.pk])

    @extend_schema_field(serializers.ChoiceField(choices=Phase.values))
    def get_phase(self, deployment: Deployment) -> str:
        """What it amounts to, as a code."""
        return standing_of(deployment).phase.value

    def get_phase_words(self, deployment: Deployment) -> str:
        """What it amounts to, in the reader's language."""
        return str(standing_of(deployment).phase.label)

    def get_ready_replicas(self, deployment: Deployment) -> int:
        """How many replicas of the live version answer."""
        return standing_of(deployment).ready

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_domains(self, deployment: Deployment) -> list[str]:
        """The codes that requests may name."""
        return [domain["code"] for domain in deployment.domains.get("domains", ())]


class DeploymentDetail(DeploymentOut):
    """With replicas and conditions."""

    replicas = serializers.SerializerMethodField()
    conditions = serializers.SerializerMethodField()

    class Meta(DeploymentOut.Meta):
        fields = [*DeploymentOut.Meta.fields, "replicas", "conditions"]
        read_only_fields = fields

    @extend_schema_field(ReplicaOut(many=True))
    def get_replicas(self, deployment: Deployment) -> Any:
        """Engines that run or come, and those that failed at what is wanted."""
        return ReplicaOut(shown_replicas(deployment), many=True).data

    @extend_schema_field(ConditionOut(many=True))
    def get_conditions(self, deployment: Deployment) -> Any:
        """What holds now."""
        return [
            {key: one[key] for key in ("type", "status", "reason", "since")}
            | {"message": condition_sentence(one)}
            for one in deployment.conditions
        ]


class DeploymentRevisionOut(serializers.ModelSerializer):
    """What was wanted at one time."""

    version = serializers.IntegerField(source="version_id", read_only=True)
    domain_map = serializers.IntegerField(source="domain_map_id", read_only=True, allow_null=True)
    created_by = serializers.CharField(
        source="created_by.username", read_only=True, allow_null=True, default=None
    )

    class Meta:
        model = DeploymentRevision
        fields = [
            "number", "version", "domain_map", "domains", "settings", "note", "rolled_back_to", "created_by",
            "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class DeploymentEventOut(serializers.ModelSerializer):
    """One line of the timeline."""

    message = serializers.SerializerMethodField()

    class Meta:
        model = DeploymentEvent
        fields = ["id", "at", "kind", "detail", "actor", "message"]
        read_only_fields = fields

    def get_message(self, event: DeploymentEvent) -> str:
        """The line in the reader's language."""
        return event_sentence(event)
