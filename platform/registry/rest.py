"""REST: models, immutable versions and their files, aliases, uploads."""

from __future__ import annotations

from typing import Any

from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import Role
from accounts.permissions import READ_WRITE, TeamScoped
from common.closed import Closed
from common.closed_requests import takes_no_body, takes_query
from common.query_values import whole_number
from registry import services
from registry.downloads import version_file_response
from registry.models import Alias, Model, ModelVersion, Upload
from registry.receiving import FILE_BODY, FILE_PARSERS, FILE_QUERY, received_file
from registry.selectors import models_of, version_get, versions_of


class AliasOut(serializers.ModelSerializer):
    """A name and the version that it points at."""

    class Meta:
        model = Alias
        fields = ["name", "version", "updated_at"]
        read_only_fields = fields


class VersionBrief(serializers.ModelSerializer):
    """A version without its files and reports."""

    model_name = serializers.CharField(source="model.name", read_only=True)
    state = serializers.CharField(read_only=True)
    family = serializers.CharField(source="spec.family", read_only=True)
    num_experts = serializers.IntegerField(read_only=True)

    class Meta:
        model = ModelVersion
        fields = [
            "id", "model", "model_name", "number", "state", "family", "num_experts", "size_bytes", "parent", "note",
            "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class VersionOut(VersionBrief):
    """A version with everything that is known about it."""

    class Meta(VersionBrief.Meta):
        fields = [
            *VersionBrief.Meta.fields,
            "spec",
            "files",
            "inspection",
            "lineage",
            "report",
            "verified_at",
        ]
        read_only_fields = fields


class ModelOut(serializers.ModelSerializer):
    """A model with its versions in brief."""

    versions = serializers.SerializerMethodField()
    aliases = AliasOut(many=True, read_only=True)

    class Meta:
        model = Model
        fields = [
            "id", "name", "slug", "description", "licence", "source", "created_at", "updated_at", "aliases", "versions",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(VersionBrief(many=True))
    def get_versions(self, model: Model) -> Any:
        """Newest first."""
        return VersionBrief(model.versions.all(), many=True).data


class ModelIn(Closed):
    """What people say about a model."""

    name = serializers.CharField(max_length=120)
    description = serializers.CharField(max_length=4000, required=False, allow_blank=True)
    licence = serializers.CharField(max_length=120, required=False, allow_blank=True)
    source = serializers.CharField(max_length=500, required=False, allow_blank=True)  # type: ignore[assignment]


class AliasIn(Closed):
    """Where an alias shall point."""

    version = serializers.IntegerField(min_value=1)


class NoteIn(Closed):
    """A version's remark."""

    note = serializers.CharField(max_length=400, allow_blank=True)


class UploadOut(serializers.ModelSerializer):
    """An uploaded file; `artifact` is its sha256."""

    kind = serializers.CharField(read_only=True)

    class Meta:
        model = Upload
        fields = ["id", "name", "kind", "artifact", "size_bytes", "created_at"]
        read_only_fields = fields


class ModelViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """The team's models."""

    grants = READ_WRITE
    queryset = Model.objects.all()
    serializer_class = ModelOut

    def get_queryset(self) -> Any:
        """Return the team's models with versions and aliases."""
        empty = getattr(self, "swagger_fake_view", False)
        return Model.objects.none() if empty else models_of(self.caller.team)

    @extend_schema(request=ModelIn, responses={201: ModelOut})
    def create(self, request: Request) -> Response:
        """Make a model without versions; an import adds one."""
        wanted = ModelIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        self.caller.must_be(Role.EDITOR)
        model = services.model_create(
            team=self.caller.team, created_by=self.caller.user, caller=self.caller, **wanted.validated_data
        )
        return Response(ModelOut(model).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=ModelIn, responses=ModelOut)
    def partial_update(self, request: Request, pk: Any = None) -> Response:
        """Change name, description, licence or source."""
        model = self.get_object()
        present = {name: getattr(model, name) for name in ("name", "description", "licence", "source")}
        wanted = ModelIn(data=request.data, partial=True)
        wanted.is_valid(raise_exception=True)
        services.model_edit(caller=self.caller, model_id=model.pk, **{**present, **wanted.validated_data})
        return Response(ModelOut(self.get_object()).data)

    @extend_schema(
        methods=["PUT"],
        request=AliasIn,
        responses=AliasOut,
        parameters=[OpenApiParameter("name", str, "path")],
    )
    @extend_schema(
        methods=["DELETE"], responses={204: None}, parameters=[OpenApiParameter("name", str, "path")]
    )
    @action(detail=True, methods=["put", "delete"], url_path=r"aliases/(?P<name>[a-z0-9-]{1,40})")
    def alias(self, request: Request, pk: Any = None, name: str = "") -> Response:
        """Point an alias at a version, or take it away."""
        model = self.get_object()
        if request.method == "DELETE":
            services.alias_remove(caller=self.caller, model_id=model.pk, name=name)
            return Response(status=status.HTTP_204_NO_CONTENT)
        wanted = AliasIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        alias = services.alias_set(
            caller=self.caller, model_id=model.pk, name=name, version_id=wanted.validated_data["version"]
        )
        return Response(AliasOut(alias).data)


class VersionViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """Immutable versions; jobs make them."""

    grants = READ_WRITE
    queryset = ModelVersion.objects.all()
    serializer_class = VersionOut

    def get_queryset(self) -> Any:
        """Return the team's versions, of one model when ?model= says so."""
        if getattr(self, "swagger_fake_view", False):
            return ModelVersion.objects.none()
        found = versions_of(self.caller.team)
        model = whole_number(self.request, "model", default=0)
        return found.filter(model_id=model) if self.request.query_params.get("model") else found

    def get_serializer_class(self) -> type[serializers.ModelSerializer]:
        """Lists are brief."""
        return VersionBrief if self.action == "list" else VersionOut

    @takes_query(OpenApiParameter("model", int, description="Only the versions of this model."))
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """List versions, newest first."""
        return super().list(request, *args, **kwargs)

    @extend_schema(request=NoteIn, responses=VersionOut)
    def partial_update(self, request: Request, pk: Any = None) -> Response:
        """Set the remark; nothing else of a version can change."""
        wanted = NoteIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        version = services.version_note_set(
            caller=self.caller, version_id=self.get_object().pk, note=wanted.validated_data["note"]
        )
        return Response(VersionOut(version).data)

    @takes_no_body(responses=VersionOut)
    @action(detail=True, methods=["post"])
    def verify(self, request: Request, pk: Any = None) -> Response:
        """Hash every file again; the version's state says whether the bytes are what they were."""
        version = services.version_verify(caller=self.caller, version_id=self.get_object().pk)
        return Response(VersionOut(version).data)

    @extend_schema(
        responses={(200, "application/octet-stream"): OpenApiTypes.BINARY},
        parameters=[OpenApiParameter("name", str, "path")],
    )
    @action(detail=True, methods=["get"], url_path=r"files/(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]{0,199})")
    def file(self, request: Request, pk: Any = None, name: str = "") -> FileResponse:
        """Download one file of a version."""
        return version_file_response(version_get(self.caller.team, self.get_object().pk), name)


class UploadViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """Files on their way in: GGUF, safetensors, JSON, JSON Lines, CSV."""

    grants = READ_WRITE
    queryset = Upload.objects.all()
    serializer_class = UploadOut
    parser_classes = FILE_PARSERS

    @takes_query(*FILE_QUERY)
    @extend_schema(request=FILE_BODY, responses={201: UploadOut})
    def create(self, request: Request) -> Response:
        """Upload a file, as a multipart field `file` or as the body with ?filename=…"""
        file = received_file(request)
        upload = services.upload_create(
            caller=self.caller, name=file.name, source=file.source, sha256=file.sha256,
            expected_bytes=file.expected_bytes,
        )  # fmt: skip
        return Response(UploadOut(upload).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Forget an upload."""
        services.upload_delete(caller=self.caller, upload_id=self.get_object().pk)
        return Response(status=status.HTTP_204_NO_CONTENT)
