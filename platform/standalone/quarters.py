"""Where PostgreSQL lives and as whom it runs. It refuses to run as root, so root finds it another way.

An ordinary user runs it as himself. Root runs it in a user namespace, in which root looks like an ordinary user: the
files stay root's. Where namespaces are forbidden (the usual container), root lends it the user `nobody`, and a place
that `nobody` can reach.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from standalone import processes
from standalone.errors import StandaloneError
from standalone.terminal import note

LENT_USER = "nobody"
OUTSIDE = Path("/var/tmp")


@dataclass(frozen=True, slots=True)
class Quarters:
    """One way to run a cluster."""

    data_dir: Path
    socket_dir: Path
    in_namespace: bool = False
    lent_uid: int | None = None

    def popen_arguments(self, death_signal: int) -> dict[str, object]:
        """Return what `subprocess.Popen` must be told."""
        prepare = processes.die_with_parent(death_signal, as_root_in_user_namespace=self.in_namespace)
        if self.lent_uid is None:
            return {"preexec_fn": prepare}
        return {"preexec_fn": prepare, "user": self.lent_uid, "group": self.lent_uid, "extra_groups": []}


def quarters_for(data_dir: Path, run_dir: Path) -> Quarters:
    """Decide how the cluster with this data folder and these sockets is run."""
    if not processes.needs_user_namespace():
        return Quarters(data_dir, run_dir)
    if user_namespaces_allowed() and not _belongs_to_lent_user(data_dir):
        return Quarters(data_dir, run_dir, in_namespace=True)
    return _lent_quarters(data_dir, run_dir)


def _belongs_to_lent_user(data_dir: Path) -> bool:
    """True for a cluster that was made where namespaces were forbidden."""
    return data_dir.exists() and data_dir.stat().st_uid == pwd.getpwnam(LENT_USER).pw_uid


@lru_cache(maxsize=1)
def user_namespaces_allowed() -> bool:
    """Try it: whether root may make a user namespace is known only by trying."""
    prepare = processes.die_with_parent(as_root_in_user_namespace=True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", ""], preexec_fn=prepare, capture_output=True, check=False
        )
    except (subprocess.SubprocessError, OSError):
        return False
    return done.returncode == 0


def _lent_quarters(data_dir: Path, run_dir: Path) -> Quarters:
    """Make folders that the lent user owns, in place where he can get there, else outside."""
    uid = pwd.getpwnam(LENT_USER).pw_uid
    for folder in (data_dir.parent, run_dir):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
    if not (reachable_by_others(data_dir.parent) and reachable_by_others(run_dir)):
        digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]
        outside = OUTSIDE / f"turnout-pg-{digest}"
        _own(outside, 0, 0o711)
        note(
            f"User namespaces are forbidden here and {data_dir} is closed to others: the database lies in {outside}"
        )
        data_dir, run_dir = outside / "data", outside
    sockets = run_dir / "pg"
    for folder in (data_dir, sockets):
        _own(folder, uid, 0o700)
    return Quarters(data_dir, sockets, lent_uid=uid)


def _own(folder: Path, uid: int, mode: int) -> None:
    """Make a folder and give it away; refuse one that somebody else has put there."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
    if folder.is_symlink() or folder.lstat().st_uid not in (0, uid):
        raise StandaloneError(f"{folder} belongs to uid {folder.lstat().st_uid}; remove it and try again.")
    if folder.stat().st_uid != uid:
        for root, folders, files in os.walk(folder):
            for name in (".", *folders, *files):
                os.chown(Path(root) / name, uid, uid, follow_symlinks=False)
    folder.chmod(mode)


def reachable_by_others(path: Path) -> bool:
    """True when any user may walk to this folder."""
    return all(folder.stat().st_mode & 0o001 for folder in (path.resolve(), *path.resolve().parents))


def reachable_programs(bin_dir: Path, quarters: Quarters) -> Path:
    """Return the programs' folder, copied to where the lent user can get when he cannot get to the original."""
    if quarters.lent_uid is None or reachable_by_others(bin_dir):
        return bin_dir
    digest = hashlib.sha256(
        os.fsencode(bin_dir.resolve()) + str(bin_dir.stat().st_mtime_ns).encode()
    ).hexdigest()[:8]
    target = OUTSIDE / f"turnout-pg-programs-{digest}"
    _own(target, 0, 0o755)
    package = bin_dir.parents[1]
    if not (target / "complete").exists():
        # A wheel's programs find its shared libraries by their place beside the package.
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, target / folder.name, dirs_exist_ok=True, symlinks=True)
        (target / "complete").touch()
    return target / bin_dir.relative_to(package.parent)
