"""From the child's words to rows and live frames: few rows, quick frames, nothing after the lease is lost.

Stages and reports are all kept. Of the steps of a stage about 400 are kept, evenly; the others are frames for those
who watch now. Log lines are kept up to a number, and the last of them also in memory, for the job's row when it fails.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError, connection

from common.errors import StaleLease
from jobs.events import frame_publish
from jobs.execution import JobClaim, checkpoint_record, job_event
from jobs.stages import progress_of
from workers.keeper import Keeper
from workers.runtime import Message

log = logging.getLogger(__name__)
T = TypeVar("T")
KEPT_STEPS_PER_STAGE = 400
KEPT_LOG_LINES = 300
TAIL_LINES = 200
FRAME_EVERY_S = 0.25
PART_EVERY_S = 2.0
MAX_LOG_CHARS = 1000
MAX_VALUES = 16
DATABASE_RETRY_S = 0.5


class Relay:
    """Hears one child for one claim."""

    def __init__(self, claim: JobClaim, keeper: Keeper) -> None:
        self.claim, self.keeper = claim, keeper
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.logged = 0
        self.framed_at = -FRAME_EVERY_S
        self.kept_at = -FRAME_EVERY_S
        # What goes on from a checkpoint goes on from there; what begins anew begins at nothing.
        self.progress = claim.job.progress if claim.job.checkpoints.exists() else 0.0
        self.kept_bucket: tuple[object, object, int] | None = None
        # The child's last word, when it has said it: result, failed or stopped.
        self.last_word: Message | None = None

    def hear(self, message: Message) -> None:
        """Take one message to where it belongs; StaleLease when it may no longer be written."""
        match message.kind:
            case "result" | "failed" | "stopped":
                self.last_word = message
            case "step":
                self._step(message.payload)
            case "checkpoint":
                self._checkpoint(message.payload)
            case "stage" | "report":
                self._keep(message.kind, message.payload)
            case "log":
                self._log(
                    str(message.payload.get("level", "info")),
                    str(message.payload.get("text", "")),
                    message.payload,
                )
            case "stderr":
                self._log("stderr", str(message.payload.get("text", "")))
            case other:
                log.warning(
                    "job %s: the child said %r, which means nothing here", self.claim.job_id, other[:40]
                )

    def log_tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.tail)

    def persist(self, action: Callable[[], T]) -> T:
        """Write, waiting for a database that restarts for as long as the lease is ours."""
        while True:
            if self.keeper.lost.is_set():
                raise StaleLease(f"The lease on job {self.claim.job_id} is lost; nothing was written.")
            try:
                return action()
            except (OperationalError, InterfaceError) as error:
                log.warning("job %s: a write waits for the database: %s", self.claim.job_id, error)
                connection.close()
                self.keeper.lost.wait(DATABASE_RETRY_S)

    def _keep(self, kind: str, payload: Mapping[str, Any]) -> None:
        stage, told = str(payload.get("stage", "")), self._with_progress(payload)
        self.persist(lambda: job_event(self.claim, kind, told, stage=stage, progress=self.progress))

    def _with_progress(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Add how far the whole job is; it never goes back."""
        self.progress = max(self.progress, progress_of(self.claim.job.kind, payload))
        return {**payload, "progress": round(self.progress, 4)}

    def _step(self, payload: Mapping[str, Any]) -> None:
        now = time.monotonic()
        bucket = (payload.get("stage"), payload.get("part"), bucket_of(payload))
        # Parts of an operation are counted, not drawn: a row now and then shows a page that opens how far they are.
        every_s = PART_EVERY_S if "part" in payload else FRAME_EVERY_S
        is_new = bucket != self.kept_bucket and now - self.kept_at >= every_s
        # Preparation without figures is for those who watch now, not for the record.
        if ("loss" in payload or "part" in payload) and (is_new or is_last(payload)):
            self.kept_at, self.framed_at, self.kept_bucket = now, now, bucket
            self._keep("step", payload)
        elif now - self.framed_at >= FRAME_EVERY_S:
            self.framed_at = now
            frame_publish(self.claim.job_id, "step", self._with_progress(payload))

    def _checkpoint(self, payload: Mapping[str, Any]) -> None:
        self.persist(
            lambda: checkpoint_record(
                self.claim, path=Path(str(payload["path"])), stage=str(payload["stage"]), step=int(payload["step"]),
                sha256=str(payload["sha256"])[:64],
            )
        )  # fmt: skip

    def _log(self, level: str, text: str, said: Mapping[str, Any] | None = None) -> None:
        text = text[:MAX_LOG_CHARS].rstrip()
        if not text:
            return
        self.tail.append(text)
        self.logged += 1
        payload: dict[str, Any] = {"level": level[:10], "text": text, **said_of(said or {})}
        if self.logged <= KEPT_LOG_LINES:
            self.persist(lambda: job_event(self.claim, "log", payload))
        elif time.monotonic() - self.framed_at >= FRAME_EVERY_S:
            frame_publish(self.claim.job_id, "log", payload)


def said_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The code of a sentence and its values, bounded; nothing for a line that is no sentence of the library's."""
    code, values = payload.get("code"), payload.get("values")
    if not isinstance(code, str) or not isinstance(values, dict):
        return {}
    kept = {str(name)[:40]: str(value)[:MAX_LOG_CHARS] for name, value in list(values.items())[:MAX_VALUES]}
    return {"code": code[:60], "values": kept}


def _numbers(payload: Mapping[str, Any]) -> tuple[int, int]:
    step, of = payload.get("step"), payload.get("of")
    return (step if isinstance(step, int) else 0), (of if isinstance(of, int) else 0)


def is_last(payload: Mapping[str, Any]) -> bool:
    """Whether a step ends its stage."""
    step, of = _numbers(payload)
    return 0 < of <= step


def bucket_of(payload: Mapping[str, Any]) -> int:
    """The stretch of its stage that a step lies in; one step of each stretch becomes a row."""
    step, of = _numbers(payload)
    return step // max(1, -(-of // KEPT_STEPS_PER_STAGE))
