"""What stands still is not looked at again each time, and nothing that changes goes unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from deployments import lookout, services
from deployments.lookout import Lookout, everything_now
from deployments.models import Deployment, Node, Replica
from deployments.reconcile import reconcile_all
from deployments.states import ReplicaState, Wanted
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db


@pytest.fixture
def settled(people: Any, tmp_path: Any) -> Deployment:
    """A deployment that serves, on a node that was heard of just now."""
    version = make_version(people, tmp_path, name="Moe", spec=moe_spec(num_experts=8, top_k=2))
    online("node-1")
    made = services.deployment_create(caller=people.owner, name="support", version_id=version.pk)
    reconcile_all()
    Replica.objects.update(state=ReplicaState.READY, address="x", epoch=1, heartbeat_at=Now())
    while not reconcile_all():
        pass
    return made


def online(name: str, *, free: int = 10**10) -> None:
    Node.objects.update_or_create(
        name=name, defaults={"heartbeat_at": Now(), "capacity": {"free_bytes": free}}
    )


def watched() -> tuple[Lookout, list[bool]]:
    """A lookout, and what it has found: one word for each look."""
    looks: list[bool] = []

    def look() -> bool:
        looks.append(reconcile_all())
        return looks[-1]

    return Lookout(look), looks


def test_what_is_settled_is_asked_about_in_one_statement(settled, django_assert_num_queries) -> None:
    found, looks = watched()
    found.turn()
    # Writes down the conditions, which is a change too.
    found.turn()
    looks.clear()
    with django_assert_num_queries(1):
        found.turn()
    assert looks == []


def test_heartbeats_are_no_change(settled) -> None:
    before = everything_now()
    Replica.objects.update(heartbeat_at=Now(), stats={"running": 3})
    online("node-1", free=5)
    assert everything_now() == before


CHANGES: dict[str, Callable[[], Any]] = {
    "what is wanted": lambda: Deployment.objects.update(desired_replicas=2, generation=F("generation") + 1),
    "an engine that broke": lambda: Replica.objects.update(state=ReplicaState.FAILED, error="killed"),
    "its reason": lambda: Replica.objects.update(error="checksum"),
    "its words": lambda: Replica.objects.update(error_detail="model.safetensors"),
    "an engine that ends": lambda: Replica.objects.update(state=ReplicaState.STOPPED),
    "an engine started again": lambda: Replica.objects.update(epoch=F("epoch") + 1),
    "a wish": lambda: Replica.objects.update(wanted=Wanted.DRAIN),
    "an engine that falls silent": lambda: Replica.objects.update(heartbeat_at="2020-01-01T00:00Z"),
    "a node that falls silent": lambda: Node.objects.update(heartbeat_at="2020-01-01T00:00Z"),
    "a node that comes": lambda: online("node-2"),
    "a node of another name": lambda: Node.objects.update(name="node-3"),
    "a deployment that goes": lambda: Deployment.objects.update(deleted_at=Now()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_a_plan_is_made_of_brings_a_look_when_it_changes(settled, change) -> None:
    found, looks = watched()
    found.turn()
    found.turn()
    looks.clear()
    change()
    found.turn()
    assert len(looks) == 1


def test_who_finds_no_place_is_looked_after_each_time(settled) -> None:
    """What nodes have free is not asked about: it changes with each heartbeat."""
    online("node-1", free=0)
    Deployment.objects.update(desired_replicas=2, generation=F("generation") + 1)
    found, looks = watched()
    for _ in range(4):
        found.turn()
    assert looks == [False] * 4
    online("node-1")
    found.turn()
    assert Replica.objects.count() == 2


def test_after_a_while_everything_is_looked_at_all_the_same(settled, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(lookout.time, "monotonic", lambda: clock[0])
    found, looks = watched()
    found.turn()
    found.turn()
    looks.clear()
    clock[0] += lookout.LOOK_EVERY_S
    found.turn()
    assert len(looks) == 1


def test_a_look_that_fails_is_taken_again(settled) -> None:
    answers = iter([False, True, True])
    looks: list[bool] = []

    def look() -> bool:
        looks.append(next(answers))
        return looks[-1]

    found = Lookout(look)
    for _ in range(4):
        found.turn()
    assert looks == [False, True]
