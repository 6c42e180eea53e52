"""One job from claim to end. The message that led here said no more than "look"."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import close_old_connections, connection
from django.db.models import Q
from django.db.models.functions import Now
from kombu.exceptions import OperationalError

from common.errors import Conflict, DomainError, StaleLease
from common.holders import this_process
from jobs import execution
from jobs.choices import JobState
from jobs.dispatch import ring
from jobs.execution import JobClaim
from jobs.models import Job
from moe_core.errors import MoeCoreError
from workers import folders, inputs
from workers.keeper import Keeper
from workers.publish import publish
from workers.relay import Relay
from workers.runtime import Child, Limits, Message, how_it_ended

log = logging.getLogger(__name__)
# Set when the worker is told to end.
stopping = threading.Event()
# One at a time on a machine: two would share its cores and its memory and both be late.
_heavy = threading.Semaphore(1)


def holder() -> str:
    """Who this worker is in leases."""
    return f"{settings.NODE_NAME}/{this_process()}/{threading.get_native_id()}"


def run(job_id: int) -> None:
    """Take the job if it is ours to take, and see it through."""
    close_old_connections()
    try:
        kind = Job.objects.filter(pk=job_id).values_list("kind", flat=True).first()
        if kind is None or stopping.is_set():
            return
        with room_for(kind) as free:
            claim = execution.job_claim(job_id, holder=holder()) if free else None
            if claim is None:
                return
            log.info("job %s: claimed, epoch %s, attempt %s", job_id, claim.epoch, claim.job.attempts)
            see_through(claim)
        ring_for_next()
    finally:
        connection.close()


def ring_for_next() -> None:
    """There is room again: ring for the job that waits longest, sooner than the reconciler would."""
    due = Q(not_before=None) | Q(not_before__lte=Now())
    waiting = (
        Job.objects.filter(due, state=JobState.QUEUED).order_by("id").values_list("id", flat=True).first()
    )
    if waiting is None or stopping.is_set():
        return
    try:
        ring(waiting)
    except OperationalError as error:
        log.warning("job %s could not be rung for now: %s", waiting, error)


@contextmanager
def room_for(kind: str) -> Iterator[bool]:
    """Yield whether this machine has room; what finds none stays queued and is rung for again."""
    if not execution.is_heavy(kind):
        yield True
        return
    free = _heavy.acquire(blocking=False)
    try:
        yield free
    finally:
        if free:
            _heavy.release()


def see_through(claim: JobClaim) -> None:
    """Run the child under the lease and end the job as the child ended."""
    keeper = Keeper(claim, stopping)
    relay = Relay(claim, keeper)
    keeper.start()
    try:
        with folders.work_folder(claim) as folder:
            code = run_child(claim, keeper, relay, folder)
            conclude(claim, keeper, relay, folder, code)
    except StaleLease as error:
        log.warning("job %s: %s", claim.job_id, error)
    except (DomainError, MoeCoreError) as error:
        give_up(claim, relay, getattr(error, "code", "") or "refused", str(error))
    except OSError as error:
        give_up(claim, relay, "no_space" if error.errno == errno.ENOSPC else "io_error", str(error))
    except Exception as error:
        log.exception("job %s: the worker failed", claim.job_id)
        crashed(claim, relay, f"The worker failed: {type(error).__name__}: {error}")
    finally:
        keeper.stop()
        folders.sweep_safely()


def run_child(claim: JobClaim, keeper: Keeper, relay: Relay, folder: Path) -> int:
    """Lay out the inputs, start the child, relay what it says until it ends; return its status."""
    checkpoints = folders.checkpoint_folder(claim)
    description = inputs.description_of(claim.job, folder, checkpoints)
    if keeper.lost.is_set():
        raise StaleLease(f"The lease on job {claim.job_id} is lost; the child was not started.")
    child = Child(description, folder, limits=limits())
    keeper.child = child
    try:
        for message in child.messages():
            relay.hear(message)
        return child.wait()
    finally:
        # However we leave, the child does not stay behind.
        child.kill()
        child.wait()


def limits() -> Limits:
    """What a child may take on this machine."""
    return Limits(memory_bytes=settings.JOB_MEMORY_BYTES or None)


def conclude(claim: JobClaim, keeper: Keeper, relay: Relay, folder: Path, code: int) -> None:
    """End the job as its child ended."""
    if keeper.lost.is_set():
        raise StaleLease(f"The lease on job {claim.job_id} was lost; its child is gone.")
    word = relay.last_word
    if word is not None and word.kind == "result" and code == 0:
        succeed(claim, relay, word, folder)
    elif word is not None and word.kind == "failed":
        give_up(claim, relay, str(word.payload.get("code", "failed")), str(word.payload.get("message", "")))
    elif keeper.asked is not None:
        stop(claim, keeper, relay)
    else:
        crashed(claim, relay, how_it_ended(code))


def succeed(claim: JobClaim, relay: Relay, word: Message, folder: Path) -> None:
    """Publish the result, unless somebody cancelled just now."""
    result: dict[str, Any] = word.payload.get("result") or {}
    try:
        publish(claim, relay, result, folder / "out")
    except StaleLease:
        raise
    except Conflict:
        relay.persist(lambda: execution.job_stopped(claim, log_tail=relay.log_tail()))
    log.info("job %s: done", claim.job_id)


def stop(claim: JobClaim, keeper: Keeper, relay: Relay) -> None:
    """The child stopped because it was asked to."""
    if keeper.giving_back:
        relay.persist(lambda: execution.job_give_back(claim))
    else:
        relay.persist(lambda: execution.job_stopped(claim, log_tail=relay.log_tail()))
    log.info("job %s: stopped (%s)", claim.job_id, keeper.asked)


def give_up(claim: JobClaim, relay: Relay, code: str, message: str) -> None:
    """End a job whose error would come again."""
    try:
        relay.persist(
            lambda: execution.job_fail(claim, code=code, message=message, log_tail=relay.log_tail())
        )
    except StaleLease as error:
        log.warning("job %s: %s", claim.job_id, error)


def crashed(claim: JobClaim, relay: Relay, reason: str) -> None:
    """Count the attempt as lost."""
    log.error("job %s: %s", claim.job_id, reason)
    try:
        relay.persist(lambda: execution.job_crashed(claim, reason=reason, log_tail=relay.log_tail()))
    except StaleLease as error:
        log.warning("job %s: %s", claim.job_id, error)
