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
from common.told import understood
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
    frame = {"type": "frame", "kind": kind, "payload": readable(kind, payload)}
    publish(f"job:{job_id}", json.dumps(frame).encode())


def event_face(event: JobEvent) -> dict[str, Any]:
    """An event as readers see it, on the socket and in the API alike."""
    payload = readable(event.kind, event.payload)
    return {"seq": event.seq, "kind": event.kind, "payload": payload, "at": event.at.isoformat()}


# Where the words of an event stand.
TEXTS = {"log": "text", "state": "reason"}


def readable(kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload with code and values beside its English words, so that each reader's page can say them anew."""
    text = str(payload.get(TEXTS.get(kind, ""), ""))
    if "code" in payload or not text or (said := understood(text)) is None:
        return dict(payload)
    return {**payload, **said}
