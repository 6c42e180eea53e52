"""A file in a request: as a multipart field, or as the raw body. Streamed either way, never held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.parsers import BaseParser, MultiPartParser
from rest_framework.request import Request

from common.closed import unknown_fields
from common.errors import Invalid
from common.strict_json import StrictJSONParser

FILE_BODY = {
    "multipart/form-data": {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, "sha256": {"type": "string"}},
        "required": ["file"],
    },
    "application/octet-stream": OpenApiTypes.BINARY,
}
FILE_QUERY = [
    OpenApiParameter("filename", str, description="The file's name, when the body is the file itself."),
    OpenApiParameter("sha256", str, description="What the bytes must hash to; anything else is refused."),
]


class RawFileParser(BaseParser):
    """Hands the body on as a stream, whatever its type."""

    media_type = "*/*"

    def parse(  # type: ignore[override]  # the file itself is the data
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> IO[bytes]:
        """Return the stream, unread."""
        return stream


# Django's own is sent by a browser's form.
FORM_FIELDS = ("file", "filename", "sha256", "csrfmiddlewaretoken")
FILE_PARSERS = [MultiPartParser, RawFileParser]
FILE_OR_JSON_PARSERS = [StrictJSONParser, MultiPartParser, RawFileParser]


@dataclass(frozen=True, slots=True)
class Received:
    """A file on its way in."""

    name: str
    source: IO[bytes]
    expected_bytes: int | None
    sha256: str | None
    fields: Mapping[str, str]


def received_file(request: Request, *, also: tuple[str, ...] = ()) -> Received:
    """Return the file of a request; raise Invalid when there is none.

    A form may hold FORM_FIELDS and those named `also`; any other is refused by name, as in a `Closed` body.
    """
    query = {name: str(value) for name, value in request.query_params.items()}
    if request.content_type.startswith("multipart/"):
        return _from_form(request, query, FORM_FIELDS + also)
    length = request.headers.get("Content-Length", "")
    if not length.isdigit() or length == "0":
        raise Invalid(_("The body is empty; send the file."), code="no_file")
    if not query.get("filename"):
        raise Invalid(
            _("Name the file: ?filename=…"), fields={"filename": _("Give a name.")}, code="no_file_name"
        )
    # The parser hands on the stream; an empty one comes as an empty form.
    source: Any = request.data if hasattr(request.data, "read") else request.stream
    return Received(query["filename"], source, int(length), query.get("sha256"), query)


def _from_form(request: Request, query: dict[str, str], known: tuple[str, ...]) -> Received:
    if unknown := unknown_fields([*request.POST, *request.FILES], known):
        raise ValidationError(unknown)
    file = request.FILES.get("file")
    if file is None:
        raise Invalid(
            _("The form has no field “file”."), fields={"file": _("Choose a file.")}, code="no_file"
        )
    fields = {**query, **{name: str(value) for name, value in request.POST.items()}}
    return Received(
        fields.get("filename") or file.name or "", file.file, file.size, fields.get("sha256"), fields
    )
