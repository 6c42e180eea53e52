"""Which panel file an engine uses: one for each model, dtype, instruction set and state of our code. Imports no torch.

The file is opened, and its hash begun, before torch is imported: the two take about as long.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

import moe_core
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.panel_file import PanelReader, PanelWriter, remove_if_left
from moe_core.kernels.cpu.panel_footer import PanelFileError
from moe_core.spec import ServeSpec

logger = logging.getLogger(__name__)
SUFFIX = ".panels"
UNUSED_DAYS = 14
# Of the disk, by all panel files together; the newest is kept in any case.
LARGEST_SHARE = 0.25
# Where a file system knows no locks, a temporary file that nobody wrote to for so long was left by a process that died.
STALE_S = 3600.0
# A tenth of a processor where the others are busy: less, and it could hold up who waits for the interpreter's lock.
LOW_PRIORITY = 10


class PanelCache:
    """The panel file of one engine: a reader when it is there, else a writer that makes it."""

    def __init__(self, path: Path, key: str, *, shared: bool, num_threads: int = 1) -> None:
        self._path, self._key, self._shared, self._num_threads = path, key, shared, num_threads
        self.reader: PanelReader | None = None
        self.writer: PanelWriter | None = None
        # First: a disk that is full of them has no room for another.
        sweep_unfinished(path.parent)
        self._open()

    @classmethod
    def of(cls, spec: ServeSpec) -> Self | None:
        """The cache of an engine; None where there is none to use."""
        native = library()
        wanted = (
            spec.panel_dir is not None and spec.files and spec.dtype == "bfloat16" and spec.device != "cuda"
        )
        parts = spec.resident_experts is not None or spec.device_experts is not None
        if not wanted or native is None or parts:
            return None
        assert spec.panel_dir is not None
        weights = {"files": spec.files, "dtype": spec.dtype, "weights": spec.weights}
        facts = {**weights, "isa": native.isa, "code": code_digest()}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        path = spec.panel_dir / f"{key[:32]}{SUFFIX}"
        return cls(path, key, shared=spec.shares_panels, num_threads=spec.num_threads)

    def _open(self) -> None:
        try:
            self.reader = PanelReader(
                self._path, self._key, shared=self._shared, num_threads=self._num_threads
            )
            self._path.touch()
        except FileNotFoundError:
            self._begin()
        except (PanelFileError, OSError) as error:
            self.discard(error)

    def discard(self, error: Exception) -> None:
        """Give up a file that is no good, and write it anew."""
        logger.warning("the panel file %s is not used: %s", self._path.name, error)
        self.reader = None
        try:
            self._path.unlink(missing_ok=True)
        except OSError as fault:
            logger.warning("the panel file cannot be removed: %s", fault)
            return
        self._begin()

    def _begin(self) -> None:
        try:
            self.writer = PanelWriter(self._path, self._key, shared=self._shared)
        except OSError as error:
            logger.warning("no panel file is written: %s", error)

    def give_up(self) -> None:
        """Leave no file that is not whole."""
        if self.writer is not None:
            self.writer.give_up()
        self.writer = None

    def close(self) -> None:
        """The process ends: a file that is not whole yet goes with it."""
        if self.writer is not None:
            self.writer.remove_temporary()

    def finish_later(self) -> None:
        """After a start without a file, on a thread beside the first requests: write what is not written, put the file into
        its place, and sweep what nobody uses."""
        if self.writer is not None:
            threading.Thread(target=self._finish, args=(self.writer,), name="panel-file", daemon=True).start()

    def _finish(self, writer: PanelWriter) -> None:
        _step_back()
        if writer.finish():
            logger.info("the panels lie in %s", self._path.name)
        sweep(self._path.parent, keep=self._path)


def _step_back() -> None:
    """Let this thread run where the threads that answer leave a processor idle."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)


def sweep(folder: Path, *, keep: Path) -> None:
    """Remove panel files that nobody opened for long, then the longest unused until the rest takes a share of the disk."""
    now = time.time()
    files = sorted((path for path in folder.glob(f"*{SUFFIX}") if path != keep), key=lambda p: _age_s(p, now))
    room = int(LARGEST_SHARE * shutil.disk_usage(folder).total) - _size(keep)
    for path in files:
        room -= _size(path)
        if room < 0 or _age_s(path, now) > UNUSED_DAYS * 86_400:
            logger.info("the panel file %s is swept", path.name)
            # Processes that have it mapped keep its pages.
            path.unlink(missing_ok=True)


def sweep_unfinished(folder: Path) -> None:
    """Remove what processes that ended, however they did, left half written."""
    for path in folder.glob(f".*{SUFFIX}.*.tmp"):
        with suppress(OSError):
            if remove_if_left(path, stale_s=STALE_S):
                logger.info("the half written panel file %s is swept", path.name)


def _age_s(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@cache
def code_digest() -> str:
    """Of the library's sources, compiled ones included: how panels are packed, and what is left out of them, follows
    from all of it, and a file of other code must not be taken for one of this."""
    root = Path(moe_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *(root / "kernels" / "cpu" / "src").iterdir()]):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
