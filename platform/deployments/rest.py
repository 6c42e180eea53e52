"""REST: deploy, update, scale, stop, roll back, delete; what is desired beside what is observed."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema, extend_schema_field, inline_serializer
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import READ, READ_DEPLOY, Grants, TeamScoped
from deployments import services
from deployments.engine_settings import settings_checked
from deployments.models import MAX_REPLICAS, Deployment, DeploymentEvent, DeploymentRevision, Replica
from deployments.selectors import (
    deployment_get,
    deployments_of,
    events_of,
    fit_of,
    is_silent,
    revisions_of,
    shown_replicas,
    standing_of,
)
from deployments.sentences import condition_sentence, event_sentence
from deployments.states import Phase
from registry.selectors import version_get


class Closed(serializers.Serializer):
    """Refuses fields that it does not know, by name."""

    def to_internal_value(self, data: Any) -> Any:
        """Check the names before the values."""
        unknown = sorted(set(data) - set(self.fields)) if isinstance(data, dict) else []
        if unknown:
            raise serializers.ValidationError(dict.fromkeys(unknown, "There is no such field."))
        return super().to_internal_value(data)


class DeploymentIn(Closed):
    """A new deployment."""

    name = serializers.CharField(max_length=60, help_text="What clients send as `model`.")
    version = serializers.IntegerField(min_value=1)
    replicas = serializers.IntegerField(min_value=0, max_value=MAX_REPLICAS, default=1)
    domain_map = serializers.IntegerField(min_value=1, required=False, allow_null=True)
    settings = serializers.JSONField(required=False, default=dict)
    note = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)


class DeploymentChange(Closed):
    """What should be different; what is left out stays. A new version, map or settings make a revision."""

    version = serializers.IntegerField(min_value=1, required=False)
    replicas = serializers.IntegerField(min_value=0, max_value=MAX_REPLICAS, required=False)
    domain_map = serializers.IntegerField(min_value=1, required=False, allow_null=True)
    settings = serializers.JSONField(required=False)
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


NEED = {"weights": int, "cache": int, "engine": int, "total": int}
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


class DeploymentViewSet(
    TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet
):
    """The team's deployments. Changing them needs the scope `deploy`."""

    grants = READ_DEPLOY
    queryset = Deployment.objects.all()
    lookup_value_regex = r"\d{1,18}"

    def get_queryset(self) -> Any:
        """The team's, with their replicas."""
        if getattr(self, "swagger_fake_view", False):
            return Deployment.objects.none()
        return deployments_of(self.caller.team)

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        """Lists are short, single deployments whole."""
        return DeploymentOut if self.action == "list" else DeploymentDetail

    @extend_schema(request=DeploymentIn, responses={202: DeploymentDetail})
    def create(self, request: Request) -> Response:
        """Deploy a version; the answer names the place to follow it."""
        wanted = _read(DeploymentIn, request)
        made = services.deployment_create(
            caller=self.caller, name=wanted["name"], version_id=wanted["version"], replicas=wanted["replicas"],
            domain_map_id=wanted.get("domain_map"), settings=wanted["settings"], note=wanted["note"],
        )  # fmt: skip
        return _accepted(made)

    @extend_schema(request=DeploymentChange, responses={202: DeploymentDetail})
    @transaction.atomic
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change what is desired."""
        wanted = _read(DeploymentChange, request)
        deployment = deployment_get(self.caller.team, int(pk))
        expected = wanted.get("expected_generation")
        if {"version", "domain_map", "settings"} & set(wanted):
            deployment = services.deployment_update(
                caller=self.caller, deployment_id=int(pk), version_id=wanted.get("version"),
                domain_map_id=wanted.get("domain_map", services.KEEP), settings=wanted.get("settings"),
                note=wanted["note"], expected_generation=expected,
            )  # fmt: skip
            expected = None
        if "replicas" in wanted:
            deployment = services.deployment_scale(
                caller=self.caller,
                deployment_id=int(pk),
                replicas=wanted["replicas"],
                expected_generation=expected,
            )
        return _accepted(deployment)

    @extend_schema(responses={202: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Stop serving and free the name."""
        services.deployment_delete(caller=self.caller, deployment_id=int(pk))
        return Response(status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=ScaleIn, responses={202: DeploymentDetail})
    @action(detail=True, methods=["post"])
    def scale(self, request: Request, pk: str) -> Response:
        """Want another number of replicas."""
        wanted = _read(ScaleIn, request)
        return _accepted(services.deployment_scale(caller=self.caller, deployment_id=int(pk), **wanted))

    @extend_schema(request=None, responses={202: DeploymentDetail})
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: str) -> Response:
        """Want no replica."""
        return _accepted(services.deployment_stop(caller=self.caller, deployment_id=int(pk)))

    @extend_schema(request=None, responses={202: DeploymentDetail})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Start replicas that failed once more."""
        return _accepted(services.deployment_retry(caller=self.caller, deployment_id=int(pk)))

    @extend_schema(request=RollbackIn, responses={202: DeploymentDetail})
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, pk: str) -> Response:
        """Want an earlier revision again."""
        wanted = _read(RollbackIn, request)
        return _accepted(services.deployment_rollback(caller=self.caller, deployment_id=int(pk), **wanted))

    @extend_schema(responses=DeploymentRevisionOut(many=True), filters=False)
    @action(detail=True, methods=["get"], pagination_class=None)
    def revisions(self, request: Request, pk: str) -> Response:
        """What was wanted over time, newest first."""
        found = revisions_of(deployment_get(self.caller.team, int(pk)))[:200]
        return Response(DeploymentRevisionOut(found, many=True).data)

    @extend_schema(responses=DeploymentEventOut(many=True), filters=False)
    @action(detail=True, methods=["get"], pagination_class=None)
    def events(self, request: Request, pk: str) -> Response:
        """The timeline, newest first."""
        return Response(DeploymentEventOut(events_of(deployment_get(self.caller.team, int(pk)), 200), many=True).data)


class FitViewSet(TeamScoped, viewsets.ViewSet):
    """Would it fit? Reading is enough to ask."""

    grants = Grants(READ, READ)

    @extend_schema(request=FitIn, responses=FitOut)
    def create(self, request: Request) -> Response:
        """What one replica needs in memory, and where there is room."""
        wanted = _read(FitIn, request)
        version = version_get(self.caller.team, wanted["version"])
        return Response(fit_of(version.spec, settings_checked(wanted["settings"], version.spec)).as_dict())


def _read(kind: type[Closed], request: Request) -> dict[str, Any]:
    wanted = kind(data=request.data)
    wanted.is_valid(raise_exception=True)
    return dict(wanted.validated_data)


def _accepted(deployment: Deployment) -> Response:
    data = DeploymentDetail(deployment).data
    return Response(data, status=status.HTTP_202_ACCEPTED, headers={"Location": data["url"]})
