"""The reconciler looks at rows: lost bells are rung again, lost workers' jobs go on."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now

from common.models import Lease
from jobs import execution, services
from jobs.models import MAX_ATTEMPTS, Job
from jobs.reconcile import reconcile_jobs, ring_for_waiting_jobs, take_back_lost_jobs

pytestmark = pytest.mark.django_db


def lose_worker(job: Job) -> execution.JobClaim:
    claim = execution.job_claim(job.pk, holder="a")
    Lease.objects.filter(resource=job.resource).update(expires_at=Now() - timedelta(seconds=1))
    return claim


def test_a_job_whose_bell_was_lost_is_rung_for_again(job, rung) -> None:
    assert ring_for_waiting_jobs() == 1
    assert rung == [[job.pk]]
    assert ring_for_waiting_jobs() == 0
    Job.objects.filter(pk=job.pk).update(rung_at=Now() - timedelta(seconds=11))
    assert ring_for_waiting_jobs() == 1


def test_nobody_rings_for_a_job_that_waits_for_its_time_or_is_at_work(people, job, rung) -> None:
    Job.objects.filter(pk=job.pk).update(not_before=Now() + timedelta(minutes=1))
    reconcile_jobs()
    Job.objects.filter(pk=job.pk).update(not_before=None)
    execution.job_claim(job.pk, holder="a")
    reconcile_jobs()
    assert rung == []


def test_a_lost_workers_job_is_queued_again_and_rung_for_at_once(job, rung) -> None:
    lose_worker(job)
    reconcile_jobs()
    fresh = Job.objects.get(pk=job.pk)
    assert (fresh.state, fresh.attempts) == ("queued", 1)
    assert rung == [[job.pk]]
    assert execution.job_claim(job.pk, holder="b").epoch == 2


def test_a_job_at_work_is_left_alone(job) -> None:
    execution.job_claim(job.pk, holder="a")
    assert take_back_lost_jobs() == 0
    assert Job.objects.get(pk=job.pk).state == "running"


@pytest.mark.parametrize(("action", "end"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_wish_is_fulfilled_even_when_the_worker_is_gone(people, job, action, end) -> None:
    lose_worker(job)
    getattr(services, f"job_{action}")(caller=people.owner, job_id=job.pk)
    take_back_lost_jobs()
    assert Job.objects.get(pk=job.pk).state == end


def test_a_job_that_kills_every_worker_is_set_aside(job) -> None:
    for _ in range(MAX_ATTEMPTS):
        lose_worker(job)
        take_back_lost_jobs()
    fresh = Job.objects.get(pk=job.pk)
    assert (fresh.state, fresh.attempts) == ("quarantined", MAX_ATTEMPTS)
    assert "worker was lost" in fresh.error


def test_two_turns_do_what_one_does(job, rung) -> None:
    lose_worker(job)
    reconcile_jobs()
    seq = Job.objects.get(pk=job.pk).last_seq
    reconcile_jobs()
    assert Job.objects.get(pk=job.pk).last_seq == seq
    assert rung == [[job.pk]]
