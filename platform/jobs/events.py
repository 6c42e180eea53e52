"""What a job tells: rows without gaps for the record, frames for those who watch now.

A row is published as a frame with its `seq` once its transaction has committed. Frames in between (a step that is not
kept) carry no `seq` and may be lost without harm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.db import connection, transaction

from common.errors import NotFound
from common.live import publish
from jobs.models import JobEvent

NEXT_SEQ = "UPDATE jobs_job SET last_seq = last_seq + 1, updated_at = now() WHERE id = %s RETURNING last_seq"


def event_append(*, job_id: int, kind: str, payload: Mapping[str, Any], epoch: int = 0) -> JobEvent:
    """Write one event; the counter on the job's row makes the numbers gap-free, whoever writes."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(NEXT_SEQ, [job_id])
            row = cursor.fetchone()
        if row is None:
            raise NotFound(f"There is no job {job_id}.")
        event = JobEvent.objects.create(
            job_id=job_id, seq=row[0], kind=kind, payload=dict(payload), epoch=epoch
        )
        transaction.on_commit(lambda: event_publish(event))
    return event


def event_publish(event: JobEvent) -> None:
    """Send the row to those who watch."""
    frame = {"type": "event", **event_face(event)}
    publish(f"job:{event.job_id}", json.dumps(frame).encode())


def frame_publish(job_id: int, kind: str, payload: Mapping[str, Any]) -> None:
    """Send something that is not kept."""
    publish(f"job:{job_id}", json.dumps({"type": "frame", "kind": kind, "payload": dict(payload)}).encode())


def event_face(event: JobEvent) -> dict[str, Any]:
    """An event as readers see it, on the socket and in the API alike."""
    return {"seq": event.seq, "kind": event.kind, "payload": event.payload, "at": event.at.isoformat()}
