"""REST: domain maps."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import READ_WRITE, TeamScoped
from common.closed import Closed
from routing import services
from routing.models import Domain, DomainMap, DomainMapRevision
from routing.selectors import maps_of


class DomainOut(serializers.ModelSerializer):
    """One domain."""

    class Meta:
        model = Domain
        fields = ["code", "name_en", "name_zh", "examples", "experts", "colour"]
        read_only_fields = fields


class DomainIn(Closed):
    """One domain as it shall be."""

    code = serializers.CharField(max_length=12)
    name_en = serializers.CharField(max_length=80)
    name_zh = serializers.CharField(max_length=80)
    examples = serializers.ListField(child=serializers.CharField(max_length=500), required=False, max_length=200)
    experts = serializers.ListField(child=serializers.IntegerField(min_value=0, max_value=1023), max_length=1024)
    colour = serializers.IntegerField(min_value=0, max_value=5, required=False)


class MapOut(serializers.ModelSerializer):
    """A map at its present revision."""

    domains = DomainOut(many=True, read_only=True)
    general_experts = serializers.ListField(child=serializers.IntegerField(), read_only=True)

    class Meta:
        model = DomainMap
        fields = [
            "id", "name", "revision", "num_experts", "domains", "general_experts", "policy", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = fields


class MapIn(Closed):
    """A whole map; a domain's expert may be shared with other domains, a general one may not."""

    name = serializers.CharField(max_length=120)
    num_experts = serializers.IntegerField(min_value=2, max_value=1024, default=8)
    domains = DomainIn(many=True)
    general_experts = serializers.ListField(
        child=serializers.IntegerField(min_value=0, max_value=1023), required=False, max_length=1024
    )
    policy = serializers.DictField(required=False)


class MapChange(MapIn):
    """The next revision of a map; `revision` is the one that it starts from."""

    revision = serializers.IntegerField(min_value=1)
    name = serializers.CharField(max_length=120, required=False)


class MapRevisionOut(serializers.ModelSerializer):
    """One saved revision."""

    class Meta:
        model = DomainMapRevision
        fields = ["revision", "snapshot", "created_at"]
        read_only_fields = fields


class ExampleIn(Closed):
    """How many experts a layer has."""

    num_experts = serializers.IntegerField(min_value=5, max_value=1024, default=8)


class MapViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """The team's domain maps."""

    grants = READ_WRITE
    queryset = DomainMap.objects.all()
    serializer_class = MapOut

    def get_queryset(self) -> Any:
        """Return the team's maps with their domains."""
        empty = getattr(self, "swagger_fake_view", False)
        return DomainMap.objects.none() if empty else maps_of(self.caller.team)

    @extend_schema(request=MapIn, responses={201: MapOut})
    def create(self, request: Request) -> Response:
        """Make a map."""
        wanted = MapIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        plan = dict(wanted.validated_data)
        made = services.map_create(caller=self.caller, name=plan.pop("name"), plan=plan)
        return Response(MapOut(made).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=MapChange, responses=MapOut)
    def update(self, request: Request, pk: Any = None) -> Response:
        """Save the whole map as its next revision, if it differs; 409 when somebody else saved one meanwhile."""
        wanted = MapChange(data=request.data)
        wanted.is_valid(raise_exception=True)
        plan = dict(wanted.validated_data)
        name, revision = plan.pop("name", None), plan.pop("revision")
        changed = services.map_revise(
            caller=self.caller, map_id=self.get_object().pk, expected_revision=revision, plan=plan, name=name
        )
        return Response(MapOut(changed).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Remove a map; what was tuned with it keeps its own copy. 409 while a deployment or an open job uses it."""
        services.map_delete(caller=self.caller, map_id=self.get_object().pk)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=ExampleIn, responses={201: MapOut})
    @action(detail=False, methods=["post"])
    def example(self, request: Request) -> Response:
        """Make the example map: four domains with an expert each, the rest general."""
        wanted = ExampleIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        made = services.map_create_example(caller=self.caller, **wanted.validated_data)
        return Response(MapOut(made).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses=MapRevisionOut(many=True), filters=False)
    @action(detail=True, methods=["get"], pagination_class=None)
    def revisions(self, request: Request, pk: Any = None) -> Response:
        """List every revision, newest first."""
        return Response(MapRevisionOut(self.get_object().revisions.order_by("-revision"), many=True).data)
