"""Deployments are changed by their team's editors, step by step, with a history that only grows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, transaction

from accounts.models import AuditEvent
from common.errors import Conflict, Forbidden, Invalid, NotFound
from deployments import services
from deployments.engine_settings import need_of
from deployments.models import Deployment, DeploymentEvent, DeploymentRevision, Node, Replica
from deployments.reconcile import reconcile, reconcile_all
from deployments.selectors import deployment_get, fit_of, standing_of
from deployments.states import Phase, ReplicaState, Wanted
from moe_core.spec import ModelSpec
from registry.models import ModelVersion, VersionState
from routing.services import map_create
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
MAP = {
    "num_experts": 8,
    "general_experts": [7],
    "domains": [{"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0, 1]}],
}


@pytest.fixture
def version(people: Any, tmp_path: Any) -> ModelVersion:
    return make_version(people, tmp_path, name="Moe", spec=moe_spec(num_experts=8, top_k=2))


def deploy(people: Any, version: ModelVersion, **more: Any) -> Deployment:
    return services.deployment_create(
        caller=people.owner, **{"name": "support", "version_id": version.pk, **more}
    )


def online(name: str = "node-1", *, free: int = 10**10) -> Node:
    """A node that was heard of just now."""
    from django.db.models.functions import Now

    node, _made = Node.objects.get_or_create(name=name)
    Node.objects.filter(pk=node.pk).update(heartbeat_at=Now(), capacity={"free_bytes": free})
    return node


def ready(deployment: Deployment) -> None:
    """What an agent would write."""
    Replica.objects.filter(deployment=deployment, state=ReplicaState.PENDING).update(
        state=ReplicaState.READY, address="x", epoch=1
    )


def test_a_deployment_is_one_row_one_revision_one_event_and_one_line_of_the_audit_log(people, version):
    made = deploy(people, version, note="first")
    assert (made.generation, made.revision, made.observed_generation) == (1, 1, 0)
    revision = DeploymentRevision.objects.get(deployment=made)
    assert (revision.number, revision.version, revision.note) == (1, version, "first")
    assert DeploymentEvent.objects.get(deployment=made).kind == "created"
    assert AuditEvent.objects.filter(action="deployment.created").count() == 1
    assert standing_of(made).phase == Phase.PENDING


def test_a_viewer_may_look_and_not_touch(people, version):
    made = deploy(people, version)
    for act in (
        lambda: services.deployment_create(caller=people.teammate, name="x", version_id=version.pk),
        lambda: services.deployment_scale(caller=people.teammate, deployment_id=made.pk, replicas=2),
        lambda: services.deployment_update(
            caller=people.teammate, deployment_id=made.pk, version_id=version.pk
        ),
        lambda: services.deployment_delete(caller=people.teammate, deployment_id=made.pk),
        lambda: services.deployment_rollback(caller=people.teammate, deployment_id=made.pk, revision=1),
    ):
        with pytest.raises(Forbidden):
            act()


def test_another_teams_deployment_and_version_are_not_there(people, version, tmp_path):
    made = deploy(people, version)
    with pytest.raises(NotFound):
        services.deployment_scale(caller=people.outsider, deployment_id=made.pk, replicas=0)
    with pytest.raises(NotFound):
        services.deployment_create(caller=people.outsider, name="mine", version_id=version.pk)
    theirs = make_version(people, tmp_path, who="outsider", name="Other")
    with pytest.raises(NotFound):
        services.deployment_update(caller=people.owner, deployment_id=made.pk, version_id=theirs.pk)


@pytest.mark.parametrize("name", ["", "Support", "-a", "a-", "a b", "../etc", "x" * 61, "ü"])
def test_a_name_that_no_client_could_send_is_refused(people, version, name):
    with pytest.raises(Invalid) as refusal:
        deploy(people, version, name=name)
    assert "name" in refusal.value.fields


def test_a_name_is_taken_once_and_free_again_after_the_deletion(people, version):
    made = deploy(people, version)
    with pytest.raises(Invalid):
        deploy(people, version)
    services.deployment_delete(caller=people.owner, deployment_id=made.pk)
    with pytest.raises(NotFound):
        deployment_get(people.owner.team, made.pk)
    assert deploy(people, version).pk != made.pk
    assert DeploymentRevision.objects.filter(deployment_id=made.pk).exists()


@pytest.mark.parametrize("replicas", [-1, 9, True])
def test_replicas_are_bounded(people, version, replicas):
    with pytest.raises(Invalid):
        deploy(people, version, replicas=replicas)
    with pytest.raises(IntegrityError), transaction.atomic():
        Deployment.objects.filter(pk=deploy(people, version, name="b").pk).update(desired_replicas=9)


@pytest.mark.parametrize(
    "chosen",
    [
        {"dtype": "int2"},
        {"kv_tokens": 10**12},
        {"max_sequences": 64, "max_batch_tokens": 8},
        {"batch_invariant": True, "max_sequences": 16, "max_batch_tokens": 31},
        # The model has eight experts a layer.
        {"resident_experts": 7},
        {"device_experts": 7},
        {"ngram_tokens": 17},
        {"ngram_tokens": 4, "batch_invariant": True},
        {"weights": "int3"},
        {"weights": "int8", "dtype": "float32"},
        {"weights": "int4", "resident_experts": 8},
        {"expert_affinity_steps": -1},
        {"x": 1},
    ],
)
def test_engine_settings_are_closed_and_bounded(people, version, chosen):
    with pytest.raises(Invalid):
        deploy(people, version, settings=chosen)


def test_experts_on_disk_are_not_reserved_memory_for(people, version):
    whole = need_of(version.spec, {})
    held = need_of(version.spec, deploy(people, version, settings={"resident_experts": 8}).settings)
    moe = ModelSpec.parse(version.spec).moe
    number = len(moe.moe_layers) * moe.num_experts
    matrices = 3 * version.spec["hidden_size"] * moe.moe_intermediate_size
    assert whole.weights - held.weights == (number - 8) * matrices * 2
    assert held.cache == whole.cache
    # They are the processor's: no GPU holds anything.
    assert (whole.device, held.device) == (whole.weights + whole.cache, 0)


def test_experts_beside_a_gpu_are_reserved_memory_for_and_none_of_the_gpus(people, version):
    whole = need_of(version.spec, {})
    moe = ModelSpec.parse(version.spec).moe
    expert = 3 * version.spec["hidden_size"] * moe.moe_intermediate_size * 2
    number = len(moe.moe_layers) * moe.num_experts
    asked = {"device_experts": 8}
    pooled = need_of(version.spec, deploy(people, version, settings=asked).settings)
    assert whole.device - pooled.device == (number - 8) * expert
    assert replace(pooled, device=whole.device) == whole
    tiers = need_of(version.spec, {"device_experts": 8, "resident_experts": 10})
    assert whole.weights - tiers.weights == (number - 10) * expert
    assert tiers.device == pooled.device
    fit = fit_of(version.spec, asked).as_dict()
    assert fit["need"]["device"] == pooled.device
    assert fit["need"]["total"] == pooled.total == pooled.held


def test_a_damaged_version_is_not_served(people, version):
    ModelVersion.objects.filter(pk=version.pk).update(state=VersionState.FAILED)
    with pytest.raises(Invalid, match="damaged"):
        deploy(people, version)


def test_a_domain_map_must_fit_and_is_frozen_with_the_revision(people, version, tmp_path):
    domain_map = map_create(caller=people.owner, name="Shop", plan=MAP)
    made = deploy(people, version, domain_map_id=domain_map.pk)
    assert [one["code"] for one in made.domains["domains"]] == ["support"]
    assert made.domains["map_revision"] == 1
    dense = make_version(people, tmp_path, name="Dense")
    with pytest.raises(Invalid, match="dense"):
        deploy(people, dense, name="d", domain_map_id=domain_map.pk)
    narrow = make_version(people, tmp_path, name="Narrow", spec=moe_spec(num_experts=1, top_k=1))
    with pytest.raises(Invalid, match="expert"):
        deploy(people, narrow, name="n", domain_map_id=domain_map.pk)


def test_a_change_that_started_from_an_old_state_is_refused(people, version):
    made = deploy(people, version)
    services.deployment_scale(caller=people.owner, deployment_id=made.pk, replicas=2, expected_generation=1)
    with pytest.raises(Conflict):
        services.deployment_scale(
            caller=people.owner, deployment_id=made.pk, replicas=3, expected_generation=1
        )


def test_scaling_makes_no_revision_and_a_roll_back_makes_one(people, version, tmp_path):
    made = deploy(people, version)
    second = make_version(people, tmp_path, name="Second", spec=moe_spec(num_experts=8, top_k=2))
    services.deployment_scale(caller=people.owner, deployment_id=made.pk, replicas=3)
    services.deployment_update(caller=people.owner, deployment_id=made.pk, version_id=second.pk)
    back = services.deployment_rollback(caller=people.owner, deployment_id=made.pk, revision=1)
    assert (back.revision, back.generation, back.desired_version, back.desired_replicas) == (3, 4, version, 3)
    told = [(one.number, one.rolled_back_to) for one in back.revisions.order_by("number")]
    assert told == [(1, None), (2, None), (3, 1)]


def test_the_history_refuses_to_be_changed(people, version):
    made = deploy(people, version)
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        DeploymentRevision.objects.filter(deployment=made).update(note="never said")


def test_the_reconciler_says_why_nothing_runs(people, version):
    made = deploy(people, version)
    reconcile(made.pk)
    capacity = next(one for one in fresh(people, made).conditions if one["type"] == "capacity")
    assert (capacity["reason"], capacity["status"]) == ("no_node", "false")
    online(free=10**6)
    reconcile(made.pk)
    capacity = next(one for one in fresh(people, made).conditions if one["type"] == "capacity")
    assert capacity["reason"] == "no_memory"
    assert capacity["detail"]["need"] > capacity["detail"]["free"] == 10**6


def test_it_serves_updates_and_stops_as_agents_report(people, version, tmp_path):
    online()
    made = deploy(people, version, replicas=2)
    reconcile(made.pk)
    assert Replica.objects.filter(deployment=made, state=ReplicaState.PENDING).count() == 2
    assert standing_of(fresh(people, made)).phase == Phase.STARTING
    ready(made)
    reconcile(made.pk)
    now = fresh(people, made)
    assert (now.live_version, now.live_revision, now.observed_generation) == (version, 1, 1)
    assert standing_of(now).phase == Phase.READY

    second = make_version(people, tmp_path, name="Second", spec=moe_spec(num_experts=8, top_k=2))
    services.deployment_update(caller=people.owner, deployment_id=made.pk, version_id=second.pk)
    reconcile(made.pk)
    assert standing_of(fresh(people, made)).phase == Phase.UPDATING
    assert fresh(people, made).live_version == version
    ready(made)
    reconcile(made.pk)
    assert fresh(people, made).live_version == second
    assert set(Replica.objects.filter(version=version).values_list("wanted", flat=True)) == {Wanted.DRAIN}

    services.deployment_stop(caller=people.owner, deployment_id=made.pk)
    reconcile(made.pk)
    assert fresh(people, made).live_version is None
    assert standing_of(fresh(people, made)).phase == Phase.STOPPING
    Replica.objects.update(state=ReplicaState.STOPPED)
    assert standing_of(fresh(people, made)).phase == Phase.STOPPED


def test_a_failed_version_is_named_and_tried_again_on_request(people, version, tmp_path):
    online()
    made = deploy(people, version)
    reconcile(made.pk)
    ready(made)
    reconcile(made.pk)
    second = make_version(people, tmp_path, name="Second", spec=moe_spec(num_experts=8, top_k=2))
    services.deployment_update(caller=people.owner, deployment_id=made.pk, version_id=second.pk)
    reconcile(made.pk)
    Replica.objects.filter(version=second).update(state=ReplicaState.FAILED, error="checksum")
    for _ in range(3):
        reconcile(made.pk)
    assert standing_of(fresh(people, made)).phase == Phase.BLOCKED
    assert Replica.objects.filter(version=second).count() == 1
    services.deployment_retry(caller=people.owner, deployment_id=made.pk)
    reconcile(made.pk)
    assert Replica.objects.filter(version=second, state=ReplicaState.PENDING).count() == 1
    with pytest.raises(Conflict):
        services.deployment_retry(caller=people.owner, deployment_id=made.pk)


def test_a_silent_node_loses_its_replicas_only_when_another_could_take_them(people, version):
    first = online("node-1")
    made = deploy(people, version)
    reconcile(made.pk)
    ready(made)
    Node.objects.filter(pk=first.pk).update(heartbeat_at="2020-01-01T00:00Z")
    reconcile_all()
    assert Replica.objects.get(deployment=made).state == ReplicaState.READY
    online("node-2")
    reconcile_all()
    states = list(
        Replica.objects.filter(deployment=made).order_by("id").values_list("node__name", "state", "error")
    )
    assert states == [("node-1", "stopped", "node_silent"), ("node-2", "pending", "")]


def test_the_live_row_is_whole_or_empty(people, version):
    made = deploy(people, version)
    with pytest.raises(IntegrityError), transaction.atomic():
        Deployment.objects.filter(pk=made.pk).update(live_version=version)


def fresh(people: Any, deployment: Deployment) -> Deployment:
    return deployment_get(people.owner.team, deployment.pk)
