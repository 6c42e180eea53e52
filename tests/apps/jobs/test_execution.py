"""What a worker may write, and that a worker which lost its lease may write nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.db.models.functions import Now

from common.errors import Conflict, StaleLease
from common.leases import lease_claim
from common.models import Lease
from jobs import execution, services
from jobs.models import MAX_ATTEMPTS, Checkpoint, Job, JobEvent
from tests.apps.registry.fixtures import make_version

pytestmark = pytest.mark.django_db
WRITES = {
    "event": lambda claim: execution.job_event(claim, "step", {"step": 1}),
    "checkpoint": lambda claim: execution.checkpoint_record(
        claim, path=Path("/x"), stage="route", step=1, sha256="0" * 64
    ),
    "fail": lambda claim: execution.job_fail(claim, code="x", message="y"),
    "stopped": lambda claim: execution.job_stopped(claim),
    "crashed": lambda claim: execution.job_crashed(claim, reason="y"),
    "give_back": lambda claim: execution.job_give_back(claim, reason="y"),
    "heartbeat": execution.job_heartbeat,
    "success": lambda claim: execution.job_success(claim, {}).__enter__(),
}


def expire(job: Job) -> None:
    Lease.objects.filter(resource=job.resource).update(expires_at=Now() - timedelta(seconds=1))


def test_a_claim_counts_the_attempt_and_takes_the_lease(job) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    fresh = Job.objects.get(pk=job.pk)
    assert (fresh.state, fresh.attempts, fresh.holder, fresh.epoch) == ("running", 1, "a", claim.epoch)
    assert fresh.started_at is not None
    assert execution.job_claim(job.pk, holder="b") is None


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_only_a_queued_job_is_claimed_and_a_refused_claim_leaves_no_lease(people, job, state) -> None:
    (services.job_pause if state == "paused" else services.job_cancel)(caller=people.owner, job_id=job.pk)
    assert execution.job_claim(job.pk, holder="a") is None
    assert not Lease.objects.filter(resource=job.resource).exists()


def test_a_job_is_not_claimed_before_its_time(job) -> None:
    Job.objects.filter(pk=job.pk).update(not_before=Now() + timedelta(minutes=1))
    assert execution.job_claim(job.pk, holder="a") is None
    Job.objects.filter(pk=job.pk).update(not_before=Now() - timedelta(seconds=1))
    assert execution.job_claim(job.pk, holder="a") is not None


def test_the_epoch_grows_with_every_claim(people, job) -> None:
    first = execution.job_claim(job.pk, holder="a")
    execution.job_crashed(first, reason="gone")
    Job.objects.filter(pk=job.pk).update(not_before=None)
    second = execution.job_claim(job.pk, holder="a")
    assert second.epoch == first.epoch + 1


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("how", ["expired", "taken over"])
def test_a_stale_holder_writes_nothing(job, write, how) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    expire(job)
    if how == "taken over":
        assert lease_claim(resource=job.resource, holder="b") is not None
    before = (JobEvent.objects.filter(job=job).count(), Job.objects.get(pk=job.pk).state)
    with pytest.raises(StaleLease):
        WRITES[write](claim)
    assert (JobEvent.objects.filter(job=job).count(), Job.objects.get(pk=job.pk).state) == before
    assert not Checkpoint.objects.exists()


def test_a_crash_is_tried_again_later_and_the_third_is_the_last(job) -> None:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = execution.job_claim(job.pk, holder="a")
        assert claim.job.attempts == attempt
        execution.job_crashed(claim, reason="SIGKILL", log_tail="the last words")
        fresh = Job.objects.get(pk=job.pk)
        if attempt < MAX_ATTEMPTS:
            assert fresh.state == "queued"
            assert fresh.not_before > fresh.created_at
            Job.objects.filter(pk=job.pk).update(not_before=None)
    assert (fresh.state, fresh.error_code, fresh.error) == ("quarantined", "gave_up", "SIGKILL")
    assert fresh.log_tail == "the last words"
    assert fresh.ended_at is not None
    assert execution.job_claim(job.pk, holder="a") is None


def test_waiting_grows_with_each_attempt() -> None:
    assert timedelta(seconds=0.7) < execution.backoff(1) < timedelta(seconds=1.3)
    assert timedelta(seconds=2.9) < execution.backoff(2) < timedelta(seconds=5.1)


def test_a_job_given_back_does_not_lose_an_attempt(job) -> None:
    execution.job_give_back(execution.job_claim(job.pk, holder="a"), reason="the worker ends")
    fresh = Job.objects.get(pk=job.pk)
    assert (fresh.state, fresh.attempts) == ("queued", 0)
    assert execution.job_claim(job.pk, holder="b") is not None


@pytest.mark.parametrize(
    ("action", "wanted", "end"), [("cancel", "cancel", "cancelled"), ("pause", "pause", "paused")]
)
def test_a_wish_reaches_the_worker_and_is_fulfilled(people, job, action, wanted, end) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    assert execution.job_wanted(claim) is None
    getattr(services, f"job_{action}")(caller=people.owner, job_id=job.pk)
    assert execution.job_wanted(claim) == wanted
    execution.job_stopped(claim)
    assert Job.objects.get(pk=job.pk).state == end
    assert Lease.objects.get(resource=job.resource).holder is None


def test_a_cancel_that_comes_before_the_result_wins_and_nothing_is_published(people, job, tmp_path) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    services.job_cancel(caller=people.owner, job_id=job.pk)
    with pytest.raises(Conflict), execution.job_success(claim, {}) as made:
        made.append(make_version(people, tmp_path))
    assert Job.objects.get(pk=job.pk).state == "cancelling"
    assert not made[0].__class__.objects.exists()


def test_success_publishes_version_and_end_together(people, job, tmp_path) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    with execution.job_success(claim, {"tuning": {}}) as made:
        made.append(make_version(people, tmp_path))
    fresh = Job.objects.get(pk=job.pk)
    assert (fresh.state, fresh.result_version_id, fresh.progress) == ("succeeded", made[0].pk, 1.0)


def test_a_failure_has_its_reason_and_no_second_attempt(job) -> None:
    claim = execution.job_claim(job.pk, holder="a")
    execution.job_fail(claim, code="non_finite_loss", message="loss is NaN at step 3", log_tail="step 3")
    fresh = Job.objects.get(pk=job.pk)
    assert (fresh.state, fresh.error_code, fresh.error) == (
        "failed",
        "non_finite_loss",
        "loss is NaN at step 3",
    )
