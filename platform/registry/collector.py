"""Removes objects that nothing refers to, after a time of grace.

An app that names objects anywhere else than in a foreign key to Artifact says so:

    @keeps_artifacts
    def hashes_of_jobs() -> Iterable[str]: ...

Every put touches its object, and a version touches its files when it is made, so that an object which is about to be
referred to is never old enough to go.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError
from django.db.models.functions import Now

from registry import store
from registry.models import Artifact, ModelVersion

Finder = Callable[[], Iterable[str]]
_finders: list[Finder] = []
GRACE = timedelta(days=7)


@dataclass(slots=True)
class Collected:
    """What went: hashes of objects, and how many left-over parts of broken uploads."""

    removed: list[str] = field(default_factory=list)
    num_bytes: int = 0
    num_parts: int = 0


def keeps_artifacts(finder: Finder) -> Finder:
    """Register a function that yields the hashes which an app refers to."""
    _finders.append(finder)
    return finder


@keeps_artifacts
def hashes_of_versions() -> Iterator[str]:
    """Yield the hashes of every version's files."""
    for files in ModelVersion.objects.values_list("files", flat=True).iterator(chunk_size=200):
        yield from (entry["sha256"] for entry in files.values())


def collect(*, grace: timedelta = GRACE, dry_run: bool = False) -> Collected:
    """Remove what is older than the grace and not referred to; with dry_run only say what would go."""
    collected = Collected()
    kept = {sha256 for finder in _finders for sha256 in finder()}
    old = Artifact.objects.filter(touched_at__lt=Now() - grace).values_list("pk", "size_bytes")
    for sha256, size in list(old):
        if sha256 not in kept and _remove(sha256, grace, dry_run):
            collected.removed.append(sha256)
            collected.num_bytes += size
    if not dry_run:
        _remove_unknown(grace, collected)
        _remove_parts(grace, collected)
    return collected


def _remove(sha256: str, grace: timedelta, dry_run: bool) -> bool:
    """Remove one object unless somebody touched it or refers to it by now."""
    try:
        with transaction.atomic():
            store.lock_object(sha256)
            found = Artifact.objects.filter(pk=sha256, touched_at__lt=Now() - grace)
            if not found.exists():
                return False
            found.delete()
            if dry_run:
                transaction.set_rollback(True)
                return True
            store.place_of(sha256).unlink(missing_ok=True)
    except (ProtectedError, IntegrityError):
        return False
    return True


def _remove_unknown(grace: timedelta, collected: Collected) -> None:
    """Remove objects without a row: a put that was rolled back after the file had its place."""
    for path in (Path(settings.STORE_DIR) / "objects").glob("??/??/*"):
        if not _is_older(path, grace):
            continue
        with transaction.atomic():
            store.lock_object(path.name)
            if not Artifact.objects.filter(pk=path.name).exists():
                collected.num_bytes += path.stat().st_size
                path.unlink()
                collected.removed.append(path.name)


def _remove_parts(grace: timedelta, collected: Collected) -> None:
    for path in (Path(settings.STORE_DIR) / "incoming").glob("*"):
        if _is_older(path, grace):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            collected.num_parts += 1


def _is_older(path: Path, grace: timedelta) -> bool:
    return os.lstat(path).st_mtime < time.time() - grace.total_seconds()
