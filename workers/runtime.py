"""One child process of a job: its description goes in as a file, its words come out as lines of JSON.

stdout: one JSON object a line (`Message`). stderr: anything; it becomes the job's log. `control`: a file that the child
looks at between steps; it appears when the run is to stop, and says how.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from common.told import PROCESS
from moe_core.strict_json import StrictJsonError, loads
from workers.spawn import Limits, kill_group, scrubbed_environment, spawner

MAX_LINE_BYTES = 1 << 20
QUEUED_LINES = 500
ROOT = Path(__file__).resolve().parents[1]
CHILD = (sys.executable, "-m", "workers.child")
Stop = Literal["cancel", "pause"]


@dataclass(frozen=True, slots=True)
class Message:
    """One line of a child: `kind` and the rest of the object; kind "stderr" holds a line of text."""

    kind: str
    payload: dict[str, Any]


class Child:
    """A running child of one job."""

    def __init__(
        self,
        description: dict[str, Any],
        folder: Path,
        *,
        command: Sequence[str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.control = folder / "control"
        path = folder / "job.json"
        path.write_text(json.dumps({**description, "control": str(self.control)}))
        self.process = spawner().spawn(
            [*(command or CHILD), str(path)],
            cwd=ROOT,
            limits=limits or Limits(),
            environment=scrubbed_environment(),
        )
        self.lines: queue.Queue[Message | None] = queue.Queue(QUEUED_LINES)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, message_of), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, log_line_of), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def messages(self) -> Iterator[Message]:
        """Yield what the child says until both of its pipes are closed."""
        open_pipes = len(self._readers)
        while open_pipes:
            message = self.lines.get()
            if message is None:
                open_pipes -= 1
            else:
                yield message

    def ask_to_stop(self, how: Stop) -> None:
        """Leave word for the child; it looks between two steps."""
        draft = self.control.with_suffix(".new")
        draft.write_text(how)
        os.replace(draft, self.control)

    def kill(self) -> None:
        """End the child and all that it started, at once."""
        kill_group(self.process)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Return how it ended; one that closed its pipes but does not end is killed."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def _read(self, pipe: IO[bytes], parse: Any) -> None:
        with pipe:
            while raw := pipe.readline(MAX_LINE_BYTES + 1):
                self.lines.put(parse(raw))
        self.lines.put(None)


def message_of(raw: bytes) -> Message:
    """Read one line of stdout; what is not an object with a kind is shown as a log line, never trusted."""
    try:
        value = loads(raw, max_bytes=MAX_LINE_BYTES)
    except StrictJsonError as error:
        return Message("stderr", {"text": f"unreadable line of {len(raw)} bytes: {error}"})
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return Message("stderr", {"text": f"a line without a kind: {raw[:200]!r}"})
    return Message(value.pop("kind"), value)


def log_line_of(raw: bytes) -> Message:
    """Read one line of stderr."""
    return Message("stderr", {"text": raw.decode("utf-8", "replace").rstrip().replace("\0", "�")})


def how_it_ended(code: int) -> str:
    """Say in words how a child ended that did not say so itself."""
    if code >= 0:
        return PROCESS.say("ended", status=code)
    if code == -signal.SIGKILL:
        return PROCESS.say("killed", signal=-code)
    name = {11: "SIGSEGV", 6: "SIGABRT", 25: "SIGXFSZ"}.get(-code, "see signal(7)")
    return PROCESS.say("signalled", signal=-code, name=name)
