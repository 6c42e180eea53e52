"""Serving under fire: workers killed and frozen, the broker emptied. Engines never outlive their agent."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from common.models import Lease
from deployments.models import Deployment, Replica
from deployments.services import deployment_create
from deployments.states import ReplicaState
from tests.apps.deployments.stack import SETTINGS, real_version
from tests.faults.stack import Stack, flush_valkey, until
from workers.engine_http import get_json

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]
PATIENCE_S = 120.0


@pytest.fixture
def deployment(stack: Stack, tmp_path: Path) -> Deployment:
    stack.app = "workers.app"
    version = real_version(stack.people, tmp_path)
    return deployment_create(
        caller=stack.people.owner, name="support", version_id=version.pk, settings=SETTINGS
    )


def ready(deployment: Deployment, *, after_epoch: int = 0) -> Replica:
    def found() -> Replica | None:
        return Replica.objects.filter(
            deployment=deployment, state=ReplicaState.READY, epoch__gt=after_epoch
        ).first()

    replica: Replica = until("ready replica", found, PATIENCE_S)
    return replica


def engines_of(folder: Path) -> list[int]:
    """Engine processes that were started from this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"moe_core.engine.server" in words and str(folder).encode() in words:
                found.append(int(entry.name))
    return found


def answers(replica: Replica) -> dict[str, Any] | None:
    return get_json(Path(replica.address), "/health", 5)


def test_engines_die_with_a_killed_worker_and_the_next_one_serves(stack, deployment, tmp_path):
    stack.reconciler()
    worker = stack.worker()
    before = ready(deployment)
    assert engines_of(tmp_path) == [before.pid]
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    until("end of the engine", lambda: not engines_of(tmp_path))
    flush_valkey()
    stack.worker("b")
    after = ready(deployment, after_epoch=before.epoch)
    assert after.pk == before.pk
    assert answers(after)["epoch"] == after.epoch
    assert engines_of(tmp_path) == [after.pid]


def test_nobody_waits_for_the_leases_of_what_was_killed(stack, deployment, tmp_path):
    reconciler, worker = stack.reconciler(), stack.worker()
    before = ready(deployment)
    for process in (worker, reconciler):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Longer than the test's patience: only who knows that the holders have ended may take them.
    assert Lease.objects.filter(holder__isnull=False).update(expires_at=Now() + timedelta(hours=1)) > 1
    stack.reconciler()
    stack.worker("b")
    after = ready(deployment, after_epoch=before.epoch)
    assert answers(after)["epoch"] == after.epoch
    assert engines_of(tmp_path) == [after.pid]
    turning = Lease.objects.filter(resource__startswith="loop:", expires_at__lt=Now() + timedelta(minutes=30))
    until("loops of the new reconciler", turning.exists)


def test_a_frozen_workers_node_is_taken_over_and_it_lets_go_when_it_wakes(stack, deployment, tmp_path):
    stack.reconciler()
    frozen = stack.worker("a")
    before = ready(deployment)
    os.kill(frozen.pid, signal.SIGSTOP)
    stack.worker("b")
    after = ready(deployment, after_epoch=before.epoch)
    assert answers(after)["epoch"] == after.epoch
    os.kill(frozen.pid, signal.SIGCONT)
    until("end of the old engine", lambda: engines_of(tmp_path) == [after.pid], PATIENCE_S)
    after.refresh_from_db()
    assert (after.state, after.epoch) == (ReplicaState.READY, before.epoch + 1)


def test_a_worker_that_ends_in_order_leaves_its_replicas_for_the_next(stack, deployment, tmp_path):
    stack.reconciler()
    worker = stack.worker()
    before = ready(deployment)
    worker.terminate()
    worker.wait(30)
    before.refresh_from_db()
    assert (before.state, before.address, before.pid) == (ReplicaState.PENDING, "", None)
    assert not engines_of(tmp_path)
    stack.worker("b")
    assert ready(deployment, after_epoch=before.epoch).pk == before.pk
