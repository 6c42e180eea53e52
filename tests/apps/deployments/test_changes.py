"""A change by REST changes what it names, keeps the rest, and is refused where it would do nothing."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.models import Deployment
from deployments.selectors import events_of
from tests.apps.deployments.test_rest import URL, call
from tests.apps.deployments.test_services import deploy, version  # noqa: F401

pytestmark = pytest.mark.django_db
SETTINGS = {"max_waiting": 9, "kv_tokens": 2048, "batch_invariant": True, "resident_experts": 12}


@pytest.fixture
def made(people: Any, version: Any) -> Deployment:  # noqa: F811
    return deploy(people, version, settings=SETTINGS)


def patch(client: Any, people: Any, made: Deployment, body: Any) -> Any:
    return call(client, "patch", f"{URL}{made.pk}/", people.bearer("owner", "read", "deploy"), body)


def test_settings_that_a_change_leaves_out_stay(client: Any, people: Any, made: Deployment) -> None:
    reply = patch(client, people, made, {"settings": {"max_sequences": 4}})
    assert reply.status_code == 202, reply.content
    assert reply.json()["settings"] == {**made.settings, "max_sequences": 4}
    assert SETTINGS.items() <= reply.json()["settings"].items()


def test_null_takes_back_a_setting_that_need_not_be_set(client: Any, people: Any, made: Deployment) -> None:
    reply = patch(client, people, made, {"settings": {"resident_experts": None}})
    assert reply.status_code == 202, reply.content
    assert reply.json()["settings"] == {k: v for k, v in made.settings.items() if k != "resident_experts"}


@pytest.mark.parametrize(
    "same",
    [
        {"settings": {"max_waiting": 9}},
        {"settings": {"resident_experts": 12, "batch_invariant": True, "ngram_tokens": None}, "note": "again"},
        {"domain_map": None, "replicas": 1},
        {"settings": {"prior_mode": None}},
    ],
)
def test_what_is_set_already_makes_no_revision(client: Any, people: Any, made: Deployment, same: Any) -> None:
    reply = patch(client, people, made, {**same, "version": made.desired_version_id})
    assert reply.status_code == 202, reply.content
    told = reply.json()
    assert (told["revision"], told["generation"], told["settings"]) == (1, 1, made.settings)
    assert (made.revisions.count(), len(events_of(made, 9))) == (1, 1)


def test_a_setting_that_came_with_a_later_release_makes_no_revision_by_its_default(
    client: Any, people: Any, made: Deployment
) -> None:
    Deployment.objects.update(settings={k: v for k, v in made.settings.items() if k != "expert_affinity_steps"})
    assert patch(client, people, made, {"settings": {"expert_affinity_steps": 0}}).json()["revision"] == 1
    assert patch(client, people, made, {"settings": {"max_waiting": 8}}).json()["revision"] == 2


def test_a_roll_back_to_what_is_wanted_makes_no_revision(client: Any, people: Any, made: Deployment) -> None:
    bearer = people.bearer("owner", "read", "deploy")
    for wanted, number in (({"max_waiting": 8}, 2), ({"max_waiting": 9}, 3)):
        assert patch(client, people, made, {"settings": wanted}).json()["revision"] == number
    for revision, number in ((1, 3), (3, 3), (2, 4)):
        reply = call(client, "post", f"{URL}{made.pk}/rollback/", bearer, {"revision": revision})
        assert (reply.status_code, reply.json()["revision"]) == (202, number)


@pytest.mark.parametrize("wrong", [{"kv_tokens": None}, {"wats": 1}, [], "x"])
def test_settings_that_are_none_change_nothing(
    client: Any, people: Any, made: Deployment, wrong: Any
) -> None:
    assert patch(client, people, made, {"settings": wrong}).status_code == 422
    made.refresh_from_db()
    assert made.revision == 1 and SETTINGS.items() <= made.settings.items()


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, set()),
        ({"note": "why"}, set()),
        ({"settings": {}, "note": "why"}, set()),
        ({"expected_generation": 1}, set()),
        ({"translate_domains": True}, set()),
        ({"confirm_domains": True, "note": "x"}, set()),
        ({"replicas": 2, "note": "more"}, {"note"}),
        ({"domain_map": None, "translate_domains": True}, {"translate_domains"}),
        ({"settings": {"kv_tokens": 1024}, "confirm_domains": True}, {"confirm_domains"}),
        (
            {"replicas": 2, "translate_domains": True, "confirm_domains": True},
            {"translate_domains", "confirm_domains"},
        ),
    ],
)
def test_what_would_do_nothing_is_refused(
    client: Any, people: Any, made: Deployment, body: Any, fields: set[str]
) -> None:
    reply = patch(client, people, made, body)
    assert reply.status_code == 422, reply.content
    assert {one["field"] for one in reply.json().get("errors", [])} == fields
    assert fields or "must change something" in reply.json()["detail"]
    made.refresh_from_db()
    assert (made.revision, made.generation, made.desired_replicas) == (1, 1, 1)


@pytest.mark.parametrize("field", ["translate_domains", "confirm_domains"])
def test_a_new_deployment_says_nothing_of_domains_without_a_map(
    client: Any,
    people: Any,
    version: Any,  # noqa: F811
    field: str,
) -> None:
    body = {"name": "x", "version": version.pk, field: True}
    reply = call(client, "post", URL, people.bearer("owner", "read", "deploy"), body)
    assert reply.status_code == 422 and [one["field"] for one in reply.json()["errors"]] == [field]
    assert not Deployment.objects.exists()
