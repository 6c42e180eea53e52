"""What a page that opens now must know of a job: its state, and the events that draw its curves and its log."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from jobs.events import event_face
from jobs.models import Job, JobEvent

DRAWN_STEPS = 300
DRAWN_LINES = 200


def snapshot_of(job: Job) -> dict[str, Any]:
    """The job as of event `seq`; frames after it continue from there."""
    with transaction.atomic():
        # The counter is read first: events that come meanwhile follow as frames.
        fresh = Job.objects.get(pk=job.pk)
        events = drawn_events(fresh)
    return {"seq": fresh.last_seq, "job": job_face(fresh), "events": [event_face(event) for event in events]}


def job_face(job: Job) -> dict[str, Any]:
    """The row as the page's script reads it."""
    return {
        "id": job.pk,
        "state": job.state,
        "stage": job.stage,
        "progress": job.progress,
        "attempts": job.attempts,
        "result_version": job.result_version_id,
    }


def drawn_events(job: Job) -> list[JobEvent]:
    """Stages and reports, an even choice of the steps that count, the last of what the log shows; in order."""
    events = list(JobEvent.objects.filter(job=job, seq__lte=job.last_seq).order_by("seq"))
    steps = counting_steps([event for event in events if event.kind == "step" and "loss" in event.payload])
    lines = [event for event in events if event.kind in ("log", "checkpoint", "state")][-DRAWN_LINES:]
    rest = [event for event in events if event.kind in ("stage", "report")]
    rest += [event for event in events if event.kind == "step" and "part" in event.payload][-1:]
    return sorted([*rest, *evenly(steps, DRAWN_STEPS), *lines], key=lambda event: event.seq)


def counting_steps(steps: list[JobEvent]) -> list[JobEvent]:
    """Leave out steps that were done again after a restart: the later run is the one that counts."""
    kept: list[JobEvent] = []
    for event in steps:
        stage, step = event.payload.get("stage"), event.payload.get("step", 0)
        while kept and kept[-1].payload.get("stage") == stage and kept[-1].payload.get("step", 0) >= step:
            kept.pop()
        kept.append(event)
    return kept


def evenly(events: list[JobEvent], count: int) -> list[JobEvent]:
    """At most `count` of them, evenly, the last one always."""
    if len(events) <= count:
        return events
    stride = len(events) / (count - 1)
    return [events[int(index * stride)] for index in range(count - 1)] + [events[-1]]
