"""Which state may follow which, by whom; every change is an event and an audit line."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from accounts.models import AuditEvent
from common.errors import Conflict, Forbidden, NotFound
from jobs import execution, services
from jobs.choices import JobState
from jobs.models import Job, JobEvent

pytestmark = pytest.mark.django_db
ACTIONS = {
    "cancel": services.job_cancel,
    "pause": services.job_pause,
    "resume": services.job_resume,
    "retry": services.job_retry,
}
ENDS = {"cancelled", "succeeded", "failed", "quarantined"}
# state -> what each action makes of it; what is missing is refused.
BECOMES = {
    "queued": {"cancel": "cancelled", "pause": "paused"},
    "running": {"cancel": "cancelling", "pause": "pausing"},
    "pausing": {"cancel": "cancelling"},
    "paused": {"cancel": "cancelled", "resume": "queued"},
    "cancelling": {},
    "cancelled": {"retry": "queued"},
    "succeeded": {},
    "failed": {"retry": "queued"},
    "quarantined": {"retry": "queued"},
}


def put(job: Job, state: str) -> None:
    Job.objects.filter(pk=job.pk).update(
        state=state, ended_at=job.created_at if state in ENDS else None, attempts=2
    )


@pytest.mark.parametrize("state", BECOMES)
@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_in_each_state(people, job, state, action) -> None:
    put(job, state)
    wanted = BECOMES[state].get(action)
    lines = AuditEvent.objects.count()
    if wanted is None:
        with pytest.raises(Conflict), transaction.atomic():
            ACTIONS[action](caller=people.owner, job_id=job.pk)
        assert Job.objects.get(pk=job.pk).state == state
        assert AuditEvent.objects.count() == lines
        return
    moved = ACTIONS[action](caller=people.owner, job_id=job.pk)
    assert moved.state == wanted
    assert (moved.ended_at is not None) == (wanted in ENDS)
    assert JobEvent.objects.filter(job=job).last().payload["state"] == wanted
    assert AuditEvent.objects.count() == lines + 1
    if wanted == "queued":
        assert moved.attempts == 0


def test_the_table_above_knows_every_state() -> None:
    assert set(BECOMES) == set(JobState.values)


@pytest.mark.parametrize("action", ACTIONS)
def test_an_outsider_finds_nothing_and_a_viewer_may_not(people, job, action) -> None:
    with pytest.raises(NotFound):
        ACTIONS[action](caller=people.outsider, job_id=job.pk)
    with pytest.raises(Forbidden):
        ACTIONS[action](caller=people.teammate, job_id=job.pk)
    assert Job.objects.get(pk=job.pk).state == "queued"


@pytest.mark.parametrize(
    "wrong",
    [{"state": "dreaming"}, {"progress": 1.5}, {"state": "succeeded"}, {"kind": "bake"}],
)
def test_the_database_itself_refuses_what_cannot_be(job, wrong) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.filter(pk=job.pk).update(**wrong)


def test_events_are_numbered_without_gaps(people, job) -> None:
    services.job_pause(caller=people.owner, job_id=job.pk)
    services.job_resume(caller=people.owner, job_id=job.pk)
    claim = execution.job_claim(job.pk, holder="a")
    for step in range(5):
        execution.job_event(claim, "step", {"step": step})
    with pytest.raises(Conflict), transaction.atomic():
        services.job_resume(caller=people.owner, job_id=job.pk)
    execution.job_fail(claim, code="x", message="because")
    seqs = list(JobEvent.objects.filter(job=job).values_list("seq", flat=True))
    assert seqs == list(range(1, len(seqs) + 1))
    assert Job.objects.get(pk=job.pk).last_seq == len(seqs)
