"""Short, private folders for unix sockets, and the sweeping of those whose owner has died."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from standalone.errors import StandaloneError

# A unix socket's path may have 107 bytes at most; the longest name below a run folder needs about 50 of them.
MAX_RUN_DIR_BYTES = 57
LOCK_NAME = "owner.lock"
TEST_PREFIX = "turnout-t-"


def short_temp_root() -> Path:
    """Return the system's temp folder, or /tmp where that path is too long for sockets."""
    root = Path(tempfile.gettempdir())
    return root if len(os.fsencode(root / "turnout-t-12345678")) <= MAX_RUN_DIR_BYTES else Path("/tmp")


def run_dir_for(data_dir: Path, chosen: str | None = None) -> Path:
    """Return (and make) the private folder that holds the sockets of the instance with this data folder."""
    digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]
    path = Path(chosen).resolve() if chosen else short_temp_root() / f"turnout-{digest}"
    if len(os.fsencode(path)) > MAX_RUN_DIR_BYTES:
        raise StandaloneError(
            f"TURNOUT_RUN_DIR={path} is too long for unix sockets: "
            f"choose a path of {MAX_RUN_DIR_BYTES} bytes at most."
        )
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_if_not_private(path)
    return path


def throwaway_dir() -> tuple[Path, IO[str]]:
    """Make a fresh private folder; it lives as long as the returned lock file is open."""
    root = short_temp_root()
    sweep_abandoned(root)
    path = Path(tempfile.mkdtemp(prefix=TEST_PREFIX, dir=root))
    lock = (path / LOCK_NAME).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return path, lock


def sweep_abandoned(root: Path) -> None:
    """Remove throwaway folders whose owner has died without removing them."""
    for path in root.glob(f"{TEST_PREFIX}*"):
        lock_path = path / LOCK_NAME
        try:
            if path.stat().st_uid != os.geteuid():
                continue
            with lock_path.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # still owned, not ours, or already gone
            continue


def _refuse_if_not_private(path: Path) -> None:
    """Somebody else's folder under a name we would use could hand them our database: refuse it."""
    facts = path.lstat()
    if path.is_symlink() or facts.st_uid != os.geteuid():
        raise StandaloneError(
            f"{path} belongs to somebody else (uid {facts.st_uid}); remove it, or set TMPDIR to a folder of your own."
        )
    if facts.st_mode & 0o077:
        path.chmod(0o700)
