"""Jobs under fire: workers killed, frozen and doubled, the broker emptied, connections cut."""

from __future__ import annotations

import hashlib
import os
import signal
import time

import pytest
from celery import current_app
from django.conf import settings
from django.db import connection

from common.holders import MARK
from jobs.dispatch import QUEUE, TASK
from jobs.models import Checkpoint, Job, JobEvent
from jobs.reconcile import PERIOD_S
from jobs.services import job_cancel
from registry import store
from registry.models import ModelVersion
from tests.faults.stack import check_invariants, children_in, flush_valkey, job_in, until

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]
# What starts and schedules processes on a loaded machine of two cores.
SLACK_S = 8.0


def chain(steps: int) -> str:
    """The bytes that an uninterrupted run of so many steps ends with."""
    value = ""
    for step in range(steps):
        value = hashlib.sha256(f"{value}{step}".encode()).hexdigest()
    return value


def weights(job: Job) -> str:
    return store.path_of(job.result_version.files["trunk.safetensors"]["sha256"]).read_text()


def steps_of(job: Job, **where: object) -> list[int]:
    return list(
        JobEvent.objects.filter(job=job, kind="step", **where).values_list("payload__step", flat=True)
    )


def test_a_job_of_a_killed_worker_goes_on_from_its_checkpoint_with_the_same_bytes(stack) -> None:
    stack.reconciler()
    for name in ("a", "b"):
        stack.worker(name)
        stack.ready(name)
    job = stack.submit("steps:60 delay:0.05")
    until("checkpoint", lambda: Checkpoint.objects.filter(job=job, step__gte=10).exists())
    process = next(part for part in Job.objects.get(pk=job.pk).holder.split("/") if part.startswith(MARK))
    os.kill(int(process.rsplit(":", 2)[1]), signal.SIGKILL)
    killed = time.monotonic()
    until("end of the killed worker's child", lambda: not children_in(stack.folder), 5)
    until("second attempt", lambda: Job.objects.filter(pk=job.pk, attempts=2).exists())
    assert time.monotonic() - killed <= settings.LEASE_TTL_S + PERIOD_S + SLACK_S
    done = until("result", job_in(job, "succeeded"))
    assert weights(done) == chain(60)
    again = steps_of(job, epoch=2)
    assert again[0] > 1, "it went on from a checkpoint, not from the start"
    check_invariants(stack.folder)


def test_killed_twice_without_a_checkpoint_between_a_job_still_goes_on_from_its_last_one(stack) -> None:
    stack.reconciler()
    first = stack.worker("a")
    # Slow enough for the second worker to die between its first step and its first checkpoint.
    job = stack.submit("steps:6 delay:1")
    until("checkpoint", lambda: Checkpoint.objects.filter(job=job).exists())
    os.kill(first.pid, signal.SIGKILL)
    second = stack.worker("b")
    until("step of the second attempt", lambda: steps_of(job, epoch=2))
    os.kill(second.pid, signal.SIGKILL)
    assert not Checkpoint.objects.filter(job=job, epoch=2).exists()
    stack.worker("c")
    done = until("result", job_in(job, "succeeded"))
    assert steps_of(job, epoch=3)[0] > 1, "it went on from the checkpoint of the first attempt"
    assert weights(done) == chain(6)
    check_invariants(stack.folder)


def test_flushall_loses_neither_the_running_job_nor_those_that_wait(stack) -> None:
    stack.reconciler()
    stack.worker("a", concurrency=1)
    running = stack.submit("steps:30 delay:0.05")
    until("first step", lambda: steps_of(running))
    waiting = [stack.submit("steps:4") for _ in range(3)]
    until("bells", lambda: Job.objects.filter(rung_at__isnull=False).count() == 4)
    flush_valkey()
    for job in (running, *waiting):
        done = until("result", job_in(job, "succeeded"))
        assert done.attempts == 1
    assert weights(Job.objects.get(pk=running.pk)) == chain(30)
    check_invariants(stack.folder)


def test_a_message_delivered_six_times_to_two_workers_runs_once(stack) -> None:
    job = stack.submit("steps:10 delay:0.05")
    for _ in range(6):
        current_app.send_task(TASK, args=[job.pk], queue=QUEUE)
    stack.worker("a", concurrency=3)
    stack.worker("b", concurrency=3)
    done = until("result", job_in(job, "succeeded"))
    until("empty queue", lambda: _queue_is_empty())
    assert done.attempts == 1
    assert steps_of(job) == list(range(1, 11))
    assert ModelVersion.objects.count() == 1
    stack.reconciler()
    check_invariants(stack.folder)


def test_a_frozen_worker_that_comes_back_is_refused_and_its_child_ends(stack) -> None:
    stack.reconciler()
    frozen = stack.worker("a")
    job = stack.submit("steps:200 delay:0.1")
    until("step", lambda: steps_of(job))
    (child,) = children_in(stack.folder)
    frozen.send_signal(signal.SIGSTOP)
    stack.worker("b")
    until("takeover", lambda: Job.objects.filter(pk=job.pk, epoch=2).exists())
    Job.objects.filter(pk=job.pk)  # B is at work now; its child is another one
    until("step of the new holder", lambda: steps_of(job, epoch=2))
    seq = JobEvent.objects.filter(job=job, epoch=2).first().seq
    frozen.send_signal(signal.SIGCONT)
    until("end of the stale child", lambda: child not in children_in(stack.folder), 10)
    assert not JobEvent.objects.filter(job=job, seq__gt=seq, epoch=1).exists()
    assert not Checkpoint.objects.filter(
        job=job, epoch=1, at__gt=JobEvent.objects.get(job=job, seq=seq).at
    ).exists()
    job_cancel(caller=stack.people.owner, job_id=job.pk)
    until("end", job_in(job, "cancelled"))
    assert frozen.poll() is None, "the worker itself lives on and takes other jobs"
    check_invariants(stack.folder)


def test_a_cancel_in_the_middle_stops_within_a_step(stack) -> None:
    stack.reconciler()
    stack.worker("a")
    job = stack.submit("steps:1000 delay:0.5")
    until("step", lambda: len(steps_of(job)) >= 2)
    job_cancel(caller=stack.people.owner, job_id=job.pk)
    asked = JobEvent.objects.get(job=job, kind="state", payload__state="cancelling").seq
    until("end", job_in(job, "cancelled"), 10)
    # One step may have been in its last moments when the wish came; the wish needs 0.4 s to the child.
    assert len(steps_of(job, seq__gt=asked)) <= 2
    assert not ModelVersion.objects.exists()
    check_invariants(stack.folder)


def test_a_worker_that_is_told_to_end_hands_its_job_on(stack) -> None:
    stack.reconciler()
    first = stack.worker("a")
    job = stack.submit("steps:80 delay:0.05")
    until("step", lambda: len(steps_of(job)) >= 3)
    stack.worker("b")
    first.terminate()
    assert first.wait(30) == 0
    done = until("result", job_in(job, "succeeded"))
    assert weights(done) == chain(80)
    assert done.attempts == 1, "an attempt that was given back does not count"
    assert steps_of(job) == sorted(set(steps_of(job))), (
        "a checkpoint was made at the end: no step was done twice"
    )
    check_invariants(stack.folder)


def test_cut_connections_to_postgresql_lose_no_event(stack) -> None:
    stack.reconciler()
    stack.worker("a")
    job = stack.submit("steps:60 delay:0.05")
    for wanted in (5, 20, 35):
        until("step", lambda wanted=wanted: len(steps_of(job)) >= wanted)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    done = until("result", job_in(job, "succeeded"))
    for epoch in range(1, done.attempts + 1):
        told = steps_of(job, epoch=epoch)
        assert told == list(range(told[0], told[-1] + 1)), "a step was lost or told twice"
    assert set(steps_of(job)) == set(range(1, 61))
    assert weights(done) == chain(60)
    check_invariants(stack.folder)


def test_a_job_that_kills_every_worker_is_set_aside_and_others_run(stack) -> None:
    stack.reconciler()
    poison = stack.submit("steps:4 murder:2")
    for attempt in (1, 2, 3):
        worker = stack.worker(f"victim-{attempt}")
        until("dead worker", lambda worker=worker: worker.poll() is not None)
    bad = until("verdict", job_in(poison, "quarantined"))
    assert bad.attempts == 3
    stack.worker("healthy")
    good = stack.submit("steps:3")
    until("result", job_in(good, "succeeded"))
    check_invariants(stack.folder)


def _queue_is_empty() -> bool:
    import redis

    return redis.Redis.from_url(settings.REDIS_URL).llen(QUEUE) == 0
