"""The content-addressed store: objects/ab/cd/<sha256>, written once, never changed.

put: temporary file in the same filesystem, hashed while it is written, fsync, then (under a lock on the hash) renamed
into place, parent fsynced, row touched. A put that ends early leaves no object. No name from outside is ever part of a
path. `registry.collector` removes what nothing refers to.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypedDict

from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from common.errors import Invalid, NotFound, TooLarge
from moe_core.errors import HashMismatch
from registry.models import SHA256, Artifact

if TYPE_CHECKING:
    from registry.models import ModelVersion

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 512
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


class FileEntry(TypedDict):
    """One file of a version."""

    sha256: str
    bytes: int


Files = dict[str, FileEntry]


def put_file(path: Path) -> Artifact:
    """Store a copy of a regular file; a symbolic link is refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        return put_stream(source, expected_bytes=os.fstat(source.fileno()).st_size)


def put_stream(
    source: IO[bytes] | Iterable[bytes],
    *,
    sha256: str | None = None,
    expected_bytes: int | None = None,
    max_bytes: int | None = None,
    check_head: Callable[[bytes], None] | None = None,
) -> Artifact:
    """Store what a stream yields, in constant memory.

    `sha256` and `expected_bytes` are what the sender promised; `check_head` sees the first bytes before the rest is
    read, and may raise.
    """
    incoming = settings.STORE_DIR / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=incoming)
    try:
        with os.fdopen(descriptor, "wb") as sink:
            actual, size = _copy(_chunks(source), sink, max_bytes, check_head)
            _check_promises(actual, size, sha256, expected_bytes)
            sink.flush()
            os.fchmod(sink.fileno(), 0o444)
            os.fsync(sink.fileno())
        return _settle(Path(name), actual, size)
    finally:
        Path(name).unlink(missing_ok=True)


def path_of(sha256: str) -> Path:
    """Return where an object lies; raise NotFound when it is not in the store."""
    path = place_of(sha256)
    if not path.is_file():
        raise NotFound(_("The store has no object %(sha256)s.") % {"sha256": sha256[:64]})
    return path


def verify(sha256: str) -> None:
    """Hash an object's bytes again; raise HashMismatch when they are not what they were."""
    path = path_of(sha256)
    with path.open("rb") as source:
        actual = hashlib.file_digest(source, "sha256").hexdigest()
    if actual != sha256:
        raise HashMismatch(str(path), sha256, actual)


def ingest(directory: Path) -> Files:
    """Store every regular file of a directory and return the files as a version names them."""
    files: Files = {}
    for path in sorted(directory.iterdir()):
        if not path.is_file() or path.is_symlink() or not NAME.fullmatch(path.name):
            raise Invalid(_("%(name)s is not a plain file of a model directory.") % {"name": path.name[:200]})
        artifact = put_file(path)
        files[path.name] = {"sha256": artifact.sha256, "bytes": artifact.size_bytes}
    return files


def materialise(version: ModelVersion, directory: Path) -> Path:
    """Show a version's files by name in a directory, as links into the store; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, entry in version.files.items():
        link(entry["sha256"], directory / checked_name(name))
    return directory


def link(sha256: str, target: Path) -> None:
    """Show one object under a name: a hard link where the filesystem allows, else a symbolic one."""
    source = path_of(sha256)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)


def touch(files: Mapping[str, FileEntry]) -> None:
    """Mark objects as freshly used; raise NotFound when one is missing, so that no row can refer to it."""
    wanted = {entry["sha256"] for entry in files.values()}
    if Artifact.objects.filter(pk__in=wanted).update(touched_at=Now()) != len(wanted):
        raise NotFound(_("The store lacks an object of this version; send its files again."))


def checked_name(name: str) -> str:
    """Return a file name that cannot leave its directory, or raise Invalid."""
    if not NAME.fullmatch(name):
        raise Invalid(_("%(name)s is not a file name that a version may hold.") % {"name": name[:200]})
    return name


def place_of(sha256: str) -> Path:
    """Return where an object of this hash belongs, whether it is there or not."""
    if not re.fullmatch(SHA256, sha256):
        raise NotFound(_("The store has no object %(sha256)s.") % {"sha256": sha256[:64]})
    return Path(settings.STORE_DIR) / "objects" / sha256[:2] / sha256[2:4] / sha256


def _chunks(source: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    read = getattr(source, "read", None)
    if read is None:
        yield from source
        return
    while chunk := read(CHUNK_BYTES):
        yield chunk


def _copy(
    chunks: Iterator[bytes],
    sink: IO[bytes],
    max_bytes: int | None,
    check_head: Callable[[bytes], None] | None,
) -> tuple[str, int]:
    """Write the chunks, returning hash and size; the head is held back until it is long enough to judge."""
    digest, size, head = hashlib.sha256(), 0, b""
    judged = check_head is None
    for chunk in chunks:
        size += len(chunk)
        if max_bytes is not None and size > max_bytes:
            raise TooLarge(_("The file is larger than the limit of %(limit)s bytes.") % {"limit": max_bytes})
        if not judged:
            head += chunk[:HEAD_BYTES]
            if len(head) >= HEAD_BYTES and check_head is not None:
                check_head(head)
                judged = True
        digest.update(chunk)
        sink.write(chunk)
    if not judged and check_head is not None:
        check_head(head)
    return digest.hexdigest(), size


def _check_promises(actual: str, size: int, sha256: str | None, expected_bytes: int | None) -> None:
    if expected_bytes is not None and size != expected_bytes:
        sentence = _("%(size)s bytes arrived, %(expected)s were announced; send the file again.")
        raise Invalid(sentence % {"size": size, "expected": expected_bytes}, code="truncated")
    if sha256 is not None and actual != sha256.lower():
        sentence = _("The bytes have sha256 %(actual)s, announced was %(expected)s; send the file again.")
        raise Invalid(sentence % {"actual": actual, "expected": sha256[:64]}, code="sha256_mismatch")


def _settle(temporary: Path, sha256: str, size: int) -> Artifact:
    """Move a complete file to its place and write its row; the collector waits for the same lock."""
    place = place_of(sha256)
    with transaction.atomic():
        lock_object(sha256)
        if not place.is_file():
            _make_folders(place.parent)
            os.replace(temporary, place)
            _fsync_folder(place.parent)
        artifact, _made = Artifact.objects.update_or_create(
            sha256=sha256, defaults={"size_bytes": size, "touched_at": Now()}
        )
    return artifact


def lock_object(sha256: str) -> None:
    """Keep others from adding or removing this object until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [int(sha256[:15], 16)])


def _make_folders(folder: Path) -> None:
    for parent in reversed([folder, *folder.parents]):
        if not parent.exists():
            parent.mkdir(exist_ok=True)
            _fsync_folder(parent.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
