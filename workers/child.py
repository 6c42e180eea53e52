"""The inside of a job's process: `python -m workers.child JOB.json`. moe_core and nothing of the platform.

JOB.json: {"kind", "spec", "inputs": {name: path}, "out_dir", "checkpoint_dir", "control"}.
stdout: one JSON object a line with a `kind`; the last is "result", "failed" or "stopped". stderr: anything.
control: a file that appears when the run is to end; it holds "cancel" or "pause". SIGTERM means pause.
Status: 0 done, 10 cancelled, 11 paused, 20 failed for a reason that was told; anything else is a crash.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

from moe_core.checkpoint.files import read_json_object
from moe_core.errors import Cancelled, MoeCoreError
from moe_core.training import Paused, run_job

DONE, CANCELLED, PAUSED, FAILED = 0, 10, 11, 20
MAX_JOB_BYTES = 16 * 1024 * 1024
Stop = Literal["cancel", "pause"]


class Wire:
    """The way to the parent: whole lines, one after the other, whichever thread speaks."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    @classmethod
    def take_stdout(cls) -> Wire:
        """Keep standard output for ourselves; what a library prints goes to standard error."""
        wire = cls(os.dup(1))
        os.dup2(2, 1)
        return wire

    def send(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Write one line; a value that JSON does not have is a fault of the sender."""
        text = json.dumps({"kind": kind, **payload}, ensure_ascii=False, allow_nan=False)
        left = memoryview(f"{text}\n".encode())
        with self._lock:
            while left:
                left = left[os.write(self._fd, left) :]


class ChildIO:
    """The surroundings of a run, as moe_core.training asks for them."""

    def __init__(self, job: Mapping[str, Any], wire: Wire) -> None:
        self.inputs: dict[str, Path] = {name: Path(path) for name, path in job["inputs"].items()}
        self.out_dir = Path(job["out_dir"])
        self.checkpoint_dir = Path(job["checkpoint_dir"])
        self._control = Path(job["control"]) if job.get("control") else None
        self._wire = wire
        self._told_to_pause = threading.Event()

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Tell the parent."""
        self._wire.send(kind, payload)

    def saved_checkpoint(self, path: Path, step: int, stage: str, sha256: str) -> None:
        """Tell the parent of a complete checkpoint."""
        self._wire.send("checkpoint", {"path": str(path), "step": step, "stage": stage, "sha256": sha256})

    def should_stop(self) -> Stop | None:
        """What the control file says, or a pause when SIGTERM came."""
        try:
            word = self._control.read_text("utf-8").strip() if self._control else ""
        except FileNotFoundError:
            word = ""
        if word in ("cancel", "pause"):
            return cast("Stop", word)
        return "pause" if self._told_to_pause.is_set() else None

    def pause_on(self, number: signal.Signals) -> None:
        """Take a signal as the wish to pause."""

        def note(_number: int, _frame: FrameType | None) -> None:
            self._told_to_pause.set()

        signal.signal(number, note)


def code_of(error: BaseException) -> str | None:
    """The code of an error that would come again; None for a crash."""
    if isinstance(error, MoeCoreError):
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no_space"
    # torch tells of a failed allocation by a RuntimeError.
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "out_of_memory"
    return None


def run(job_path: Path, wire: Wire) -> int:
    """Do the job that the file describes and say how it ended."""
    try:
        job = read_json_object(job_path, MAX_JOB_BYTES)
        io = ChildIO(job, wire)
        io.pause_on(signal.SIGTERM)
        result = run_job(job["kind"], job["spec"], io)
    except Cancelled as error:
        paused = isinstance(error, Paused)
        wire.send("stopped", {"how": "pause" if paused else "cancel"})
        return PAUSED if paused else CANCELLED
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        wire.send("failed", {"code": code, "message": str(error)})
        return FAILED
    wire.send("result", {"result": result})
    return DONE


def main(arguments: list[str]) -> int:
    """Start here."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m workers.child JOB.json\n")
        return 2
    return run(Path(arguments[0]), Wire.take_stdout())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
