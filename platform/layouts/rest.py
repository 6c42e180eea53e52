"""REST: layouts, their revisions, and what a layout would cost before it is saved."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import READ, READ_WRITE, Grants, TeamScoped
from common.closed import Closed
from common.errors import Invalid
from layouts import services
from layouts.costing import preview
from layouts.models import Layout, LayoutRevision
from layouts.selectors import layouts_of, revisions_of
from registry.describe import CONTEXT_TOKENS
from registry.selectors import version_get


@extend_schema_field({"$ref": "#/components/schemas/LayoutSpec"})
class LayoutSpecField(serializers.DictField):
    """A moe_core LayoutSpec; moe_core checks it."""


class LayoutOut(serializers.ModelSerializer):
    """A layout at its present revision."""

    class Meta:
        model = Layout
        fields = ["id", "name", "base_version", "revision", "spec", "created_at", "updated_at"]
        read_only_fields = fields


class LayoutIn(Closed):
    """A new layout."""

    name = serializers.CharField(max_length=120)
    base_version = serializers.IntegerField(min_value=1)
    spec = LayoutSpecField()
    note = serializers.CharField(max_length=400, required=False, allow_blank=True)


class LayoutChange(Closed):
    """The next revision; `revision` is the one that it starts from."""

    revision = serializers.IntegerField(min_value=1)
    name = serializers.CharField(max_length=120, required=False)
    base_version = serializers.IntegerField(min_value=1, required=False)
    spec = LayoutSpecField(required=False)
    note = serializers.CharField(max_length=400, required=False, allow_blank=True)


class RevisionOut(serializers.ModelSerializer):
    """One saved revision."""

    created_by = serializers.CharField(source="created_by.username", default="", read_only=True)

    class Meta:
        model = LayoutRevision
        fields = ["revision", "base_version", "spec", "note", "created_at", "created_by"]
        read_only_fields = fields


class PreviewIn(Closed):
    """A layout that need not be saved."""

    base_version = serializers.IntegerField(min_value=1)
    spec = LayoutSpecField()
    context_tokens = serializers.IntegerField(min_value=0, max_value=1 << 24, default=CONTEXT_TOKENS)


class CostOut(serializers.Serializer):
    """moe_core's cost of one model."""

    params = serializers.DictField(child=serializers.IntegerField())
    total = serializers.IntegerField()
    active_per_token = serializers.IntegerField()
    bytes = serializers.DictField(child=serializers.IntegerField())
    kv_bytes_per_token = serializers.IntegerField()
    flops_per_token = serializers.IntegerField()
    context_tokens = serializers.IntegerField()


class PreviewOut(serializers.Serializer):
    """Dense and mixture side by side."""

    family = serializers.CharField()
    layout = serializers.DictField()
    dense = CostOut()
    mixture = CostOut()
    # How the decoder block looks: numbers, the gate's kind, and each expert's kind and width where they differ.
    shape = serializers.DictField()
    # The experts of one layer, equal ones together: count, kind, width, activation, params and FLOPs of one.
    experts = serializers.ListField(child=serializers.DictField())
    advice = serializers.ListField(child=serializers.DictField())


class LayoutViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """The team's expert layouts."""

    grants = READ_WRITE
    queryset = Layout.objects.all()
    serializer_class = LayoutOut

    def get_queryset(self) -> Any:
        """Return the team's layouts."""
        empty = getattr(self, "swagger_fake_view", False)
        return Layout.objects.none() if empty else layouts_of(self.caller.team)

    @extend_schema(request=LayoutIn, responses={201: LayoutOut})
    def create(self, request: Request) -> Response:
        """Make a layout over a dense version."""
        wanted = LayoutIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        data = dict(wanted.validated_data)
        layout = services.layout_create(caller=self.caller, base_version_id=data.pop("base_version"), **data)
        return Response(LayoutOut(layout).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=LayoutChange, responses=LayoutOut)
    def partial_update(self, request: Request, pk: Any = None) -> Response:
        """Save the next revision; 409 when somebody else saved one meanwhile."""
        wanted = LayoutChange(data=request.data)
        wanted.is_valid(raise_exception=True)
        data = dict(wanted.validated_data)
        _check_change(data)
        layout = services.layout_revise(
            caller=self.caller,
            layout_id=self.get_object().pk,
            expected_revision=data.pop("revision"),
            base_version_id=data.pop("base_version", None),
            **data,
        )
        return Response(LayoutOut(layout).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Remove a layout; what was built with it keeps its own copy. 409 while a deployment or an open job uses it."""
        services.layout_delete(caller=self.caller, layout_id=self.get_object().pk)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=RevisionOut(many=True), filters=False)
    @action(detail=True, methods=["get"], pagination_class=None)
    def revisions(self, request: Request, pk: Any = None) -> Response:
        """List every revision, newest first."""
        return Response(RevisionOut(revisions_of(self.get_object()), many=True).data)

    @extend_schema(responses=PreviewOut)
    @action(detail=True, methods=["get"])
    def cost(self, request: Request, pk: Any = None) -> Response:
        """Return what the saved layout costs."""
        layout = self.get_object()
        return Response(preview(layout.base_version, layout.spec))

    @extend_schema(request=PreviewIn, responses=PreviewOut)
    @action(detail=False, methods=["post"], grants=Grants(READ, READ))
    def preview(self, request: Request) -> Response:
        """Return what a layout would cost; nothing is saved."""
        wanted = PreviewIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        data = wanted.validated_data
        base = version_get(self.caller.team, data["base_version"])
        return Response(preview(base, data["spec"], data["context_tokens"]))


def _check_change(data: dict[str, Any]) -> None:
    """A revision changes something, and the note is kept with it."""
    if not data.keys() & {"name", "base_version", "spec"}:
        sentence = _("A revision must change something: give name, base_version or spec.")
        raise Invalid(sentence, fields={"note": sentence} if data.get("note") else None)
