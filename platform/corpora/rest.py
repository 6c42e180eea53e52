"""REST: corpora, their files, refused rows, rows."""

from __future__ import annotations

from typing import Any

from django.http import FileResponse
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import READ_WRITE, TeamScoped
from common.closed import Closed
from common.closed_requests import takes_no_body, takes_query
from common.errors import NotFound
from corpora import services
from corpora.encodings import NAMED
from corpora.intake import preview_rows
from corpora.models import Corpus, CorpusFile, Refusal
from corpora.reasons import reason
from corpora.selectors import corpora_of, file_get, training_files
from registry import store
from registry.downloads import attachment
from registry.receiving import FILE_BODY, FILE_OR_JSON_PARSERS, FILE_QUERY, received_file

MAX_OFFSET = 50_000
FILE_ID = OpenApiParameter("file_id", int, "path")
SIDES = ("train", "held_out")
SIDE = OpenApiParameter("side", str, "path", enum=SIDES)
DOMAIN = OpenApiParameter("default_domain", str, description="Domain of the rows that name none.")
ENCODING = OpenApiParameter(
    "encoding", str, enum=list(NAMED), description="The file's encoding; left out, it is told from the file."
)
ENCODINGS = [("", ""), *((name, name) for name in NAMED)]


class CorpusFileOut(serializers.ModelSerializer):
    """One file and what was made of it."""

    name = serializers.CharField(source="upload.name", read_only=True)
    kind = serializers.CharField(source="upload.kind", read_only=True)
    sha256 = serializers.CharField(source="upload.artifact_id", read_only=True)
    size_bytes = serializers.IntegerField(source="upload.size_bytes", read_only=True)
    state = serializers.CharField(read_only=True)
    # Why nothing was taken, in the caller's language.
    error = serializers.CharField(source="problem", read_only=True)

    class Meta:
        model = CorpusFile
        fields = [
            "id", "name", "kind", "sha256", "size_bytes", "default_domain", "encoding", "state", "counts",
            "error_code", "error", "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class CorpusOut(serializers.ModelSerializer):
    """A corpus with its files."""

    files = CorpusFileOut(many=True, read_only=True)

    class Meta:
        model = Corpus
        fields = [
            "id",
            "name",
            "description",
            "counts",
            "train",
            "held_out",
            "files",
            "created_at",
            "updated_at",
        ]
        read_only_fields = fields


class CorpusIn(Closed):
    """A new corpus."""

    name = serializers.CharField(max_length=120)
    description = serializers.CharField(max_length=400, required=False, allow_blank=True)


class FileIn(Closed):
    """A file that was uploaded before."""

    upload = serializers.IntegerField(min_value=1)
    default_domain = serializers.CharField(max_length=12, required=False, allow_blank=True)
    encoding = serializers.ChoiceField(choices=ENCODINGS, required=False, allow_blank=True)


class FileChange(Closed):
    """The domain of rows that name none, the encoding, or both; what is left out stays."""

    default_domain = serializers.CharField(max_length=12, required=False, allow_blank=True)
    encoding = serializers.ChoiceField(choices=ENCODINGS, required=False, allow_blank=True)


class RefusalOut(serializers.ModelSerializer):
    """One row that was not taken."""

    reason = serializers.SerializerMethodField()

    class Meta:
        model = Refusal
        fields = ["id", "row", "code", "reason", "excerpt"]
        read_only_fields = fields

    @extend_schema_field(OpenApiTypes.STR)
    def get_reason(self, refusal: Refusal) -> str:
        """The reason as a sentence in the caller's language."""
        return reason(refusal.code, refusal.detail)


class MessageOut(serializers.Serializer):
    """One turn."""

    role = serializers.CharField()
    content = serializers.CharField()


class RowOut(serializers.Serializer):
    """One row that was taken."""

    messages = MessageOut(many=True)
    domain = serializers.CharField(allow_null=True)


class RowsQuery(serializers.Serializer):
    """Which rows to show."""

    side = serializers.ChoiceField(choices=SIDES, default="train")
    domain = serializers.CharField(max_length=12, required=False, allow_blank=True)
    offset = serializers.IntegerField(min_value=0, max_value=MAX_OFFSET, default=0)
    limit = serializers.IntegerField(min_value=1, max_value=200, default=20)


class CorpusViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """The team's corpora."""

    grants = READ_WRITE
    queryset = Corpus.objects.all()
    serializer_class = CorpusOut

    def get_queryset(self) -> Any:
        """Return the team's corpora with their files."""
        empty = getattr(self, "swagger_fake_view", False)
        return Corpus.objects.none() if empty else corpora_of(self.caller.team)

    @extend_schema(request=CorpusIn, responses={201: CorpusOut})
    def create(self, request: Request) -> Response:
        """Make an empty corpus."""
        wanted = CorpusIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        corpus = services.corpus_create(caller=self.caller, **wanted.validated_data)
        return Response(CorpusOut(corpus).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Remove a corpus; runs that used it keep their rows. 409 while an open job uses it."""
        services.corpus_delete(caller=self.caller, corpus_id=self.get_object().pk)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @takes_no_body(responses={201: CorpusOut})
    @action(detail=False, methods=["post"])
    def samples(self, request: Request) -> Response:
        """Make a corpus out of the sample logs."""
        corpus = services.corpus_from_samples(caller=self.caller)
        return Response(CorpusOut(corpus).data, status=status.HTTP_201_CREATED)

    @extend_schema(methods=["GET"], responses=CorpusFileOut(many=True), filters=False)
    @extend_schema(
        methods=["POST"],
        request={**FILE_BODY, "application/json": FileIn},
        responses={201: CorpusFileOut},
    )
    @takes_query(*FILE_QUERY, DOMAIN, ENCODING, methods=["POST"])
    @action(detail=True, methods=["get", "post"], parser_classes=FILE_OR_JSON_PARSERS, pagination_class=None)
    def files(self, request: Request, pk: Any = None) -> Response:
        """List the files; add one as multipart, as the raw body, or as `{"upload": id}`."""
        corpus = self.get_object()
        if request.method == "GET":
            return Response(CorpusFileOut(corpus.files.all(), many=True).data)
        added = self._add_upload(request, corpus) if _is_json(request) else self._add_file(request, corpus)
        return Response(CorpusFileOut(added).data, status=status.HTTP_201_CREATED)

    def _add_upload(self, request: Request, corpus: Corpus) -> CorpusFile:
        wanted = FileIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        return services.upload_add(
            caller=self.caller,
            corpus_id=corpus.pk,
            upload_id=wanted.validated_data["upload"],
            default_domain=wanted.validated_data.get("default_domain", ""),
            encoding=wanted.validated_data.get("encoding", ""),
        )

    def _add_file(self, request: Request, corpus: Corpus) -> CorpusFile:
        file = received_file(request, also=("default_domain", "encoding"))
        return services.file_add(
            caller=self.caller, corpus_id=corpus.pk, name=file.name, source=file.source, sha256=file.sha256,
            expected_bytes=file.expected_bytes, default_domain=file.fields.get("default_domain", ""),
            encoding=file.fields.get("encoding", ""),
        )  # fmt: skip

    @extend_schema(methods=["PATCH"], request=FileChange, responses=CorpusFileOut, parameters=[FILE_ID])
    @extend_schema(methods=["DELETE"], responses={204: None}, parameters=[FILE_ID])
    @action(detail=True, methods=["patch", "delete"], url_path=r"files/(?P<file_id>\d{1,17})")
    def file(self, request: Request, pk: Any = None, file_id: str = "") -> Response:
        """Change a file's default domain or encoding and read it again, or take the file out."""
        corpus = self.get_object()
        if request.method == "DELETE":
            services.file_remove(caller=self.caller, corpus_id=corpus.pk, file_id=int(file_id))
            return Response(status=status.HTTP_204_NO_CONTENT)
        wanted = FileChange(data=request.data)
        wanted.is_valid(raise_exception=True)
        changed = services.file_edit(
            caller=self.caller, corpus_id=corpus.pk, file_id=int(file_id), **wanted.validated_data
        )
        return Response(CorpusFileOut(changed).data)

    @takes_query(pages=True)
    @extend_schema(responses=RefusalOut(many=True), parameters=[FILE_ID])
    @action(detail=True, methods=["get"], url_path=r"files/(?P<file_id>\d{1,17})/refusals")
    def refusals(self, request: Request, pk: Any = None, file_id: str = "") -> Response:
        """List the rows of a file that were not taken, and why."""
        file = file_get(self.get_object(), int(file_id))
        page = self.paginate_queryset(file.refusals.order_by("-id"))
        return self.get_paginated_response(RefusalOut(page, many=True).data)

    @takes_query(RowsQuery)
    @extend_schema(responses=RowOut(many=True), filters=False)
    @action(detail=True, methods=["get"], pagination_class=None)
    def rows(self, request: Request, pk: Any = None) -> Response:
        """Show some of the rows that were taken."""
        wanted = RowsQuery(data=request.query_params)
        wanted.is_valid(raise_exception=True)
        data = wanted.validated_data
        sha256 = getattr(self.get_object(), f"{data['side']}_id")
        rows = preview_rows(
            sha256, domain=data.get("domain"), offset=data["offset"], limit=data["limit"]
        ) if sha256 else []  # fmt: skip
        return Response(RowOut(rows, many=True).data)

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY}, parameters=[SIDE])
    @action(detail=True, methods=["get"], url_path=r"download/(?P<side>[a-z0-9_]{1,12})")
    def download(self, request: Request, pk: Any = None, side: str = "") -> FileResponse:
        """Download one side of the split as JSON Lines."""
        corpus = self.get_object()
        if side not in SIDES:
            raise NotFound(_("A corpus has the sides train and held_out."))
        return attachment(store.path_of(training_files(corpus)[side]), f"corpus-{corpus.pk}-{side}.jsonl")


def _is_json(request: Request) -> bool:
    """JSON names an upload; a file itself comes as a form or as raw bytes of another type."""
    return request.content_type.split(";")[0].strip().lower() == "application/json"
