"""REST: deploy, update, scale, stop, roll back, delete; what is desired beside what is observed."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import READ, READ_DEPLOY, Grants, TeamScoped
from common.closed import Closed
from common.closed_requests import takes_no_body
from deployments import services
from deployments.engine_settings import settings_checked
from deployments.idle import REVISING, check_change, check_creation
from deployments.models import Deployment
from deployments.selectors import deployment_get, deployments_of, events_of, fit_of, revisions_of
from deployments.serializers import (
    DeploymentChange,
    DeploymentDetail,
    DeploymentEventOut,
    DeploymentIn,
    DeploymentOut,
    DeploymentRevisionOut,
    FitIn,
    FitOut,
    RollbackIn,
    ScaleIn,
)
from registry.selectors import version_get


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
        check_creation(wanted)
        made = services.deployment_create(
            caller=self.caller, name=wanted["name"], version_id=wanted["version"], replicas=wanted["replicas"],
            domain_map_id=wanted.get("domain_map"), settings=wanted["settings"], note=wanted["note"], **_domains(wanted),
        )  # fmt: skip
        return _accepted(made)

    @extend_schema(request=DeploymentChange, responses={202: DeploymentDetail})
    @transaction.atomic
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change what is desired."""
        wanted = _read(DeploymentChange, request)
        check_change(wanted)
        deployment = deployment_get(self.caller.team, int(pk))
        expected = wanted.get("expected_generation")
        if set(REVISING) & set(wanted):
            deployment = services.deployment_update(
                caller=self.caller, deployment_id=int(pk), version_id=wanted.get("version"),
                domain_map_id=wanted.get("domain_map", services.KEEP), settings=wanted.get("settings"),
                note=wanted["note"], expected_generation=expected, **_domains(wanted),
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

    @takes_no_body(responses={202: DeploymentDetail})
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: str) -> Response:
        """Want no replica."""
        return _accepted(services.deployment_stop(caller=self.caller, deployment_id=int(pk)))

    @takes_no_body(responses={202: DeploymentDetail})
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
        return Response(
            DeploymentEventOut(events_of(deployment_get(self.caller.team, int(pk)), 200), many=True).data
        )


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


def _domains(wanted: dict[str, Any]) -> dict[str, bool]:
    return {name: wanted[name] for name in ("translate_domains", "confirm_domains")}


def _accepted(deployment: Deployment) -> Response:
    data = DeploymentDetail(deployment).data
    return Response(data, status=status.HTTP_202_ACCEPTED, headers={"Location": data["url"]})
