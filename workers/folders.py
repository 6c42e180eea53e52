"""Where a job's files lie on this machine, one folder an epoch, so that two holders never write into the same place.

DATA_DIR/work/<job>/e<epoch>/          job.json, control, inputs, out: gone when the attempt ends
DATA_DIR/checkpoints/<job>/e<epoch>/   what the child saves; the last accepted ones are linked into the next epoch's,
                                       and their rows follow them before the older folders go
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError
from django.utils import timezone

from jobs.choices import ENDED, JobState
from jobs.execution import JobClaim, checkpoints_follow
from jobs.models import Checkpoint, Job
from moe_core.checkpoint.atomic import fsync_path
from moe_core.checkpoint.hashes import sha256_of
from moe_core.errors import CheckpointError

log = logging.getLogger(__name__)
# A finished job's checkpoints are of no use; an ended one's are, to whoever tries it again.
GRACE_SUCCEEDED = timedelta(hours=1)
GRACE_ENDED = timedelta(days=7)
LINKED = 2
# What makes a checkpoint complete; a row holds its hash (moe_core.training.checkpoint).
MANIFEST = "manifest.json"


def work_root() -> Path:
    """The parent of all work folders."""
    return Path(settings.DATA_DIR) / "work"


def checkpoint_root() -> Path:
    """The parent of all checkpoint folders."""
    return Path(settings.DATA_DIR) / "checkpoints"


@contextlib.contextmanager
def work_folder(claim: JobClaim) -> Iterator[Path]:
    """Yield a fresh folder for one attempt and remove it afterwards."""
    folder = work_root() / str(claim.job_id) / f"e{claim.epoch}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    (folder / "inputs").mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def checkpoint_folder(claim: JobClaim) -> Path:
    """Make this epoch's folder with the last accepted checkpoints of this machine in it, then drop older epochs'.

    Only what has a row counts: a checkpoint that a holder finished after it had lost the lease is left behind.
    Raises StaleLease, with every older folder still there, when the lease was lost meanwhile.
    """
    root = checkpoint_root() / str(claim.job_id)
    folder = root / f"e{claim.epoch}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    accepted = Checkpoint.objects.filter(job_id=claim.job_id, node=settings.NODE_NAME).order_by("-id")
    linked: dict[int, Path] = {}
    for row in accepted[: 2 * LINKED]:
        if len(linked) < LINKED and _adopt(row, root, folder):
            linked[row.pk] = folder / Path(row.path).name
    if not linked:
        # Whatever lies in the older folders may be all that there is of the job: the sweep takes them in its time.
        return folder
    fsync_path(folder)
    # The rows first: were we killed between the two, the next holder would find no row whose folder is still there.
    checkpoints_follow(claim, linked)
    _drop_older(root, claim.epoch)
    return folder


def _adopt(row: Checkpoint, root: Path, folder: Path) -> bool:
    """Link the checkpoint of a row into the folder from wherever it lies whole; say whether it was found."""
    target = folder / Path(row.path).name
    if target.exists():
        return False
    for source in dict.fromkeys([Path(row.path), *sorted(root.glob(f"e*/{target.name}"))]):
        if not _is_accepted(source, row.sha256):
            continue
        try:
            _link_tree(source, target)
        except OSError:
            # A holder that does not know yet that it lost the lease may have removed it just now; all else is told.
            if _is_accepted(source, row.sha256):
                raise
            continue
        if _is_accepted(target, row.sha256):
            return True
        shutil.rmtree(target, ignore_errors=True)
    return False


def _is_accepted(checkpoint: Path, sha256: str) -> bool:
    """Whether a complete checkpoint lies there, and the one that its row means: names come again in each epoch."""
    try:
        return sha256_of(checkpoint / MANIFEST) == sha256
    except (OSError, CheckpointError):
        return False


def _drop_older(root: Path, epoch: int) -> None:
    """Remove the folders of the epochs before this one; a later holder's are not ours to touch."""
    for older in root.glob("e*"):
        number = older.name.removeprefix("e")
        if number.isdigit() and int(number) < epoch:
            shutil.rmtree(older, ignore_errors=True)


def _link_tree(source: Path, target: Path) -> None:
    """Show a checkpoint's files in another folder; its name appears there when it is whole."""
    draft = target.with_name(f".{target.name}.link")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft, copy_function=os.link)
    os.rename(draft, target)


def sweep_safely() -> None:
    """Sweep, and leave it for the next time when something is in the way."""
    try:
        sweep()
    except (OSError, DatabaseError):
        log.warning("old folders could not be swept now", exc_info=True)


def sweep() -> list[Path]:
    """Remove folders of jobs that are gone or ended long enough ago; return what was removed."""
    removed = [folder for folder in _numbered(work_root()) if _is_over(int(folder.name), timedelta(0))]
    for folder in _numbered(checkpoint_root()):
        if _is_over(int(folder.name), None):
            Checkpoint.objects.filter(job_id=int(folder.name), node=settings.NODE_NAME).delete()
            removed.append(folder)
    for folder in removed:
        shutil.rmtree(folder, ignore_errors=True)
        log.info("swept %s", folder)
    return removed


def _numbered(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [folder for folder in root.iterdir() if folder.name.isdigit() and folder.is_dir()]


def _is_over(job_id: int, grace: timedelta | None) -> bool:
    """Whether nobody will want a job's folder any more."""
    job = Job.objects.filter(pk=job_id).only("state", "ended_at").first()
    if job is None:
        return True
    if job.state not in ENDED or job.ended_at is None:
        return False
    if grace is None:
        grace = GRACE_SUCCEEDED if job.state == JobState.SUCCEEDED else GRACE_ENDED
    return timezone.now() - job.ended_at > grace
