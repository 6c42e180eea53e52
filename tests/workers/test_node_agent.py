"""The node agent turns rows into engines, tells honestly how they are, and starts again what was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from deployments.engine_settings import need_of
from deployments.models import Deployment, DeploymentEvent, Replica
from deployments.selectors import deployment_get, standing_of
from deployments.services import deployment_create, deployment_delete, deployment_scale, deployment_update
from deployments.states import Phase, ReplicaState
from registry.store import path_of
from tests.apps.deployments.stack import SETTINGS, ready_replicas, real_version, serving_stack, until
from tests.moe_core.engine.model_dirs import tiny_model
from workers.engine_http import get_json

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def agent(settings, tmp_path, people):
    with serving_stack(settings, tmp_path) as running:
        yield running


def deploy(people, version, **more) -> Deployment:
    fields = {"name": "support", "settings": SETTINGS, **more}
    return deployment_create(caller=people.owner, version_id=version.pk, **fields)


def kinds(deployment: Deployment) -> list[str]:
    return list(
        DeploymentEvent.objects.filter(deployment=deployment).order_by("id").values_list("kind", flat=True)
    )


def test_a_deployment_is_served_killed_served_again_and_deleted(agent, people, tmp_path) -> None:
    deployment = deploy(people, real_version(people, tmp_path))
    (replica,) = until(lambda: ready_replicas(deployment))
    until(lambda: Deployment.objects.get(pk=deployment.pk).live_revision == 1)
    health = get_json(Path(replica.address), "/health", 2)
    assert (health["state"], health["epoch"]) == ("ready", replica.epoch)
    until(lambda: Replica.objects.get(pk=replica.pk).stats.get("device") == health["device"] == "cpu")
    assert replica.timings["load_seconds"] > 0
    need = need_of(replica.version.spec, deployment.settings).total
    assert 0.4 * need < health["rss_bytes"] < 1.2 * need, "the estimate of the form is not what an engine takes"

    killed_at = time.monotonic()
    os.kill(replica.pid, signal.SIGKILL)
    again = until(lambda: [one for one in ready_replicas(deployment) if one.epoch > replica.epoch])[0]
    took_s = time.monotonic() - killed_at
    # What is promised: within 2 s of load time. The load is this start's own, from its process to its golden prompt.
    assert took_s - again.timings["ready_seconds"] <= 2
    assert again.pk == replica.pk
    assert again.restarts == 1
    assert again.pid != replica.pid
    assert not Path(replica.address).exists()

    deployment_delete(caller=people.owner, deployment_id=deployment.pk)
    until(lambda: Replica.objects.get(pk=replica.pk).state == ReplicaState.STOPPED)
    with pytest.raises(ProcessLookupError):
        os.kill(again.pid, 0)
    assert kinds(deployment) == [
        "created", "replica_planned", "replica_ready", "promoted", "replica_crashed", "replica_restarting",
        "replica_ready", "deleted", "dark", "replica_stopped",
    ]  # fmt: skip


def test_a_new_version_is_switched_to_when_it_is_ready_and_a_broken_one_never(
    agent, people, tmp_path
) -> None:
    first, second = (real_version(people, tmp_path, model=tiny_model(seed)) for seed in (3, 4))
    deployment = deploy(people, first)
    until(lambda: ready_replicas(deployment))
    deployment_update(caller=people.owner, deployment_id=deployment.pk, version_id=second.pk)
    until(lambda: Deployment.objects.get(pk=deployment.pk).live_version_id == second.pk)
    until(lambda: [one.version_id for one in ready_replicas(deployment)] == [second.pk])

    third = real_version(people, tmp_path, model=tiny_model(5))
    damage(third.files["model.safetensors.index.json"]["sha256"])
    deployment_update(caller=people.owner, deployment_id=deployment.pk, version_id=third.pk)
    until(lambda: Replica.objects.filter(version=third, state=ReplicaState.FAILED).exists())
    now = until(lambda: settled(people, deployment))
    assert standing_of(now).phase == Phase.BLOCKED
    assert now.live_version_id == second.pk
    assert [one.version_id for one in ready_replicas(deployment)] == [second.pk]
    failed = Replica.objects.get(version=third)
    assert failed.error == "checksum"
    assert "model.safetensors.index.json" in failed.error_detail
    assert str(tmp_path) not in failed.error_detail


def test_scaling_adds_and_drains_replicas_without_touching_the_others(agent, people, tmp_path) -> None:
    deployment = deploy(people, real_version(people, tmp_path))
    (first,) = until(lambda: ready_replicas(deployment))
    deployment_scale(caller=people.owner, deployment_id=deployment.pk, replicas=2)
    until(lambda: len(ready_replicas(deployment)) == 2)
    deployment_scale(caller=people.owner, deployment_id=deployment.pk, replicas=1)
    until(lambda: Replica.objects.filter(state=ReplicaState.STOPPED).exists())
    (left,) = ready_replicas(deployment)
    assert (left.pk, left.epoch, left.pid) == (first.pk, first.epoch, first.pid)


def damage(sha256: str) -> None:
    """Flip one byte of an object of the store."""
    path = path_of(sha256)
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def settled(people, deployment: Deployment) -> Deployment | None:
    now = deployment_get(people.owner.team, deployment.pk)
    done = {"type": "progressing", "status": "false", "reason": "failed"}
    return now if any(done.items() <= one.items() for one in now.conditions) else None
