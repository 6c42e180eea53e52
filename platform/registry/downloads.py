"""Files on their way out: always an attachment, never something that a browser would run."""

from __future__ import annotations

from pathlib import Path

from django.http import FileResponse
from django.utils.translation import gettext as _

from common.errors import NotFound
from registry import store
from registry.models import ModelVersion


def version_file_response(version: ModelVersion, name: str) -> FileResponse:
    """Return one file of a version; the name is looked up among the version's files, never on a disk."""
    entry = version.files.get(name)
    if entry is None:
        raise NotFound(_("This version has no file of that name."))
    response = attachment(store.path_of(entry["sha256"]), name)
    response["ETag"] = f'"{entry["sha256"]}"'
    return response


def attachment(path: Path, name: str) -> FileResponse:
    """Return a file as a download of plain bytes."""
    response = FileResponse(
        path.open("rb"), as_attachment=True, filename=name, content_type="application/octet-stream"
    )
    response["X-Content-Type-Options"] = "nosniff"
    return response
