"""A retried POST creates nothing twice."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import ApiToken
from common.models import IdempotentReply

BODY = {"name": "ci", "scopes": ["read"]}


@pytest.fixture
def post(people):
    """Return a function that posts as one and the same token."""
    bearer = people.bearer("owner", "admin", "read")

    def send(key: str, body: dict[str, object] = BODY):
        headers = {**bearer, "idempotency-key": key}
        return Client().post("/api/v1/tokens/", body, content_type="application/json", headers=headers)

    return send


def test_the_same_key_gives_the_same_answer_and_one_thing(post) -> None:
    first, second = post("k1"), post("k1")
    assert first.status_code == second.status_code == 201
    assert first.json()["secret"].startswith("tt_")
    assert second.json() == {**first.json(), "secret": None}
    assert first.json()["secret"] not in str(IdempotentReply.objects.values())
    assert second.headers["Idempotent-Replay"] == "true"
    assert ApiToken.objects.filter(name="ci").count() == 1


def test_the_same_key_with_another_body_is_refused(post) -> None:
    post("k2")
    assert post("k2", {**BODY, "name": "other"}).status_code == 422


def test_keys_of_two_callers_do_not_meet(people, post) -> None:
    post("k3")
    headers = {**people.bearer("outsider", "admin"), "idempotency-key": "k3"}
    reply = Client().post("/api/v1/tokens/", BODY, content_type="application/json", headers=headers)
    assert reply.status_code == 201
    assert "Idempotent-Replay" not in reply.headers


def test_a_refused_request_is_remembered_as_refused(post) -> None:
    assert post("k4", {"name": "", "scopes": []}).status_code == 400
    assert post("k4", {"name": "", "scopes": []}).headers["Idempotent-Replay"] == "true"
