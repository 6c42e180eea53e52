"""A deployment's name belongs to its team: others may use it too, and never learn that it is used."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from common.errors import DomainError, Invalid
from deployments.models import Deployment
from deployments.selectors import deployments_of
from deployments.services import deployment_create, deployment_delete
from registry.models import ModelVersion
from tests.apps.registry.fixtures import make_version
from tests.people import make_people

pytestmark = pytest.mark.django_db


@pytest.fixture
def versions(people: Any, tmp_path: Any) -> dict[str, ModelVersion]:
    return {who: make_version(people, tmp_path, name=f"Of {who}", who=who) for who in ("owner", "outsider")}


def deploy(people: Any, versions: dict[str, ModelVersion], who: str, name: str = "shop") -> Deployment:
    return deployment_create(caller=getattr(people, who), name=name, version_id=versions[who].pk)


def test_two_teams_use_one_name_each_for_its_own(people, versions) -> None:
    ours, theirs = deploy(people, versions, "owner"), deploy(people, versions, "outsider")
    assert ours.pk != theirs.pk
    assert [one.pk for one in deployments_of(people.owner.team)] == [ours.pk]
    assert [one.pk for one in deployments_of(people.outsider.team)] == [theirs.pk]


def test_a_team_has_a_name_once_until_it_is_free_again(people, versions) -> None:
    first = deploy(people, versions, "owner")
    with pytest.raises(Invalid) as refused:
        deploy(people, versions, "owner")
    assert refused.value.fields == {"name": "This name is taken in your team; choose another one."}
    deployment_delete(caller=people.owner, deployment_id=first.pk)
    assert deploy(people, versions, "owner").pk != first.pk


@pytest.mark.parametrize("is_used", [True, False])
def test_the_answers_do_not_depend_on_what_another_team_uses(people, versions, is_used) -> None:
    if is_used:
        deploy(people, versions, "owner")
    body = {"name": "shop", "version": versions["outsider"].pk}
    key = people.bearer("outsider", "read", "deploy")
    client = people.client("outsider")
    made = client.post("/api/v1/deployments/", json.dumps(body), "application/json", headers=key)
    assert made.status_code in (201, 202)
    assert made.json()["name"] == "shop"
    again = client.post("/api/v1/deployments/", json.dumps(body), "application/json", headers=key)
    assert (again.status_code, again.json()["errors"][0]["message"]) == (
        422, "This name is taken in your team; choose another one.",
    )  # fmt: skip


def test_the_page_makes_a_name_that_another_team_uses(people, versions) -> None:
    deploy(people, versions, "owner")
    form = {
        "name": "shop", "version": versions["outsider"].pk, "replicas": 0, "dtype": "float32", "kv_tokens": 4096,
        "max_sequences": 4, "num_threads": 1,
    }  # fmt: skip
    reply = people.client("outsider").post("/deployments/new/", form)
    made = Deployment.objects.get(team=people.outsider.team)
    assert (reply.status_code, reply["Location"]) == (302, f"/deployments/{made.pk}/")


def test_the_database_itself_holds_a_name_to_one_live_deployment_of_a_team(people, versions) -> None:
    made = deploy(people, versions, "owner")
    with pytest.raises(IntegrityError, match="one_deployment_name_per_team"), transaction.atomic():
        Deployment.objects.create(team=made.team, name=made.name, desired_version=made.desired_version)


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_team_makes_a_name_once_and_the_other_once(tmp_path) -> None:
    people = make_people()
    versions = {
        who: make_version(people, tmp_path, name=f"Of {who}", who=who) for who in ("owner", "outsider")
    }

    def attempt(number: int) -> str:
        who = ("owner", "outsider")[number % 2]
        try:
            deploy(people, versions, who)
        except DomainError:
            return ""
        finally:
            connection.close()
        return who

    with ThreadPoolExecutor(8) as pool:
        assert sorted(filter(None, pool.map(attempt, range(8)))) == ["outsider", "owner"]
