"""An agent whose engines serve turns once a second, and is woken by what matters: an engine's end, a wish, a lost lease."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from django.db import connection

from common.leases import lease_claim
from deployments.models import Deployment, Node, Replica
from deployments.observation import node_claim, node_report, replicas_on, wishes_on
from deployments.services import deployment_create, deployment_scale
from deployments.states import ReplicaState, Wanted
from tests.apps.deployments.stack import SETTINGS, ready_replicas, real_version, serving_stack, until
from tests.apps.telemetry.samples import served_replica
from workers.node_agent import REST_S, NodeAgent
from workers.node_lease import NodeLease

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def agent(settings, tmp_path, people):
    with serving_stack(settings, tmp_path) as running:
        yield running


def test_at_rest_it_turns_once_a_second_and_sees_an_end_and_a_wish_at_once(
    agent, people, tmp_path, monkeypatch
) -> None:
    turns: list[float] = []
    turn = agent.turn
    monkeypatch.setattr(agent, "turn", lambda: (turns.append(time.monotonic()), turn()))
    made = deployment_create(
        caller=people.owner, version_id=real_version(people, tmp_path).pk, name="support", settings=SETTINGS
    )
    (replica,) = until(lambda: ready_replicas(made))
    until(lambda: Deployment.objects.get(pk=made.pk).live_revision == 1)
    until(lambda: agent.is_at_rest)
    time.sleep(REST_S)
    since = time.monotonic()
    time.sleep(3.3 * REST_S)
    # One each second; a bell or two may have rung late.
    assert 2 <= len([at for at in turns if at > since]) <= 6

    # The longest that a look may be away, so that only a bell explains what is sooner.
    monkeypatch.setattr("workers.node_agent.REST_S", 60.0)
    monkeypatch.setattr("workers.node_agent.LOOK_EVERY_S", 60.0)
    agent.bell.set()
    time.sleep(0.5)
    os.kill(replica.pid, signal.SIGKILL)
    until(lambda: Replica.objects.get(pk=replica.pk).epoch > replica.epoch, 20)
    until(lambda: ready_replicas(made))
    until(lambda: agent.is_at_rest)
    deployment_scale(caller=people.owner, deployment_id=made.pk, replicas=0)
    until(lambda: Replica.objects.get(pk=replica.pk).state == ReplicaState.STOPPED, 40)


def test_a_lost_lease_rings() -> None:
    bell = threading.Event()
    claim = node_claim(name="node-1", holder="first/1")
    assert claim is not None
    lease = NodeLease("node-1", claim, bell)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE common_lease SET expires_at = now() - interval '1 s'")
    assert lease_claim(resource="node:node-1", holder="second/2") is not None
    lease._prolong()
    assert lease.lost.is_set() and bell.is_set()


def test_a_report_is_four_statements_and_beats_for_the_replicas(
    people: Any, tmp_path, django_assert_num_queries
) -> None:
    replica = served_replica(people, tmp_path)
    claim = node_claim(name="node-1", holder="x/1")
    assert claim is not None
    node_report(claim, name="node-1", capacity={"cpus": 1})
    before = Node.objects.get().heartbeat_at
    # With the two of its transaction.
    with django_assert_num_queries(5):
        node_report(claim, name="node-1", capacity={"cpus": 2}, beats=[(replica.pk, 1, {"running": 3})])
    replica.refresh_from_db()
    assert replica.stats == {"running": 3} and replica.heartbeat_at is not None
    node = Node.objects.get()
    assert node.capacity == {"cpus": 2} and node.heartbeat_at > before


def test_a_beat_for_another_epoch_changes_nothing(people: Any, tmp_path) -> None:
    replica = served_replica(people, tmp_path)
    claim = node_claim(name="node-1", holder="x/1")
    assert claim is not None
    node_report(claim, name="node-1", capacity={}, beats=[(replica.pk, 9, {"running": 3})])
    replica.refresh_from_db()
    assert replica.stats == {}


def test_a_node_that_is_new_or_was_silent_wakes_the_reconciler(monkeypatch) -> None:
    rung: list[str] = []
    monkeypatch.setattr("deployments.observation.wake", rung.append)
    claim = node_claim(name="node-1", holder="x/1")
    assert claim is not None
    node_report(claim, name="node-1", capacity={})
    node_report(claim, name="node-1", capacity={})
    assert rung == ["deployments"]
    Node.objects.update(heartbeat_at=None)
    node_report(claim, name="node-1", capacity={})
    assert rung == ["deployments"] * 2


def test_wishes_are_those_of_the_replicas_that_live(people: Any, tmp_path) -> None:
    replica = served_replica(people, tmp_path)
    assert wishes_on("node-1") == {replica.pk: "run"}
    Replica.objects.update(wanted=Wanted.DRAIN)
    assert wishes_on("node-1") == {replica.pk: "drain"}
    assert [row.pk for row in replicas_on("node-1")] == [replica.pk]
    Replica.objects.update(state=ReplicaState.STOPPED)
    assert wishes_on("node-1") == {} and wishes_on("node-2") == {}


def test_an_agent_without_its_lease_is_never_at_rest() -> None:
    assert not NodeAgent("node-1").is_at_rest


def test_an_engine_that_is_ready_is_seen_at_its_word(agent, people, tmp_path, monkeypatch) -> None:
    """Neither a turn nor a question is due for a minute: what an engine says of its state rings."""
    until(lambda: agent.claim is not None)
    monkeypatch.setattr("workers.serve.ASK_COMING_S", 60.0)
    monkeypatch.setattr("workers.node_agent.TICK_S", 60.0)
    monkeypatch.setattr("workers.node_agent.REST_S", 60.0)
    made = deployment_create(
        caller=people.owner, version_id=real_version(people, tmp_path).pk, name="support", settings=SETTINGS
    )
    (replica,) = until(lambda: ready_replicas(made), 40)
    assert replica.timings["ready_seconds"] < 40
