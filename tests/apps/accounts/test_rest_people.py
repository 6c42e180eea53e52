"""REST: members, invitations and the audit log, by token and by session."""

from __future__ import annotations

import json

import pytest
from django.test import Client

from accounts.audit import audit_record
from accounts.models import AuditEvent, Invitation, Membership
from common.models import IdempotentReply


@pytest.fixture
def call(people):
    """Return a function that calls the API as somebody, with a token of the scopes that they may grant."""
    keys = {
        "owner": people.bearer("owner", "read", "admin"),
        "teammate": people.bearer("teammate", "read"),
        "outsider": people.bearer("outsider", "read", "admin"),
    }

    def send(who: str, method: str, path: str, body: object = None, **headers: str):
        data = json.dumps(body) if body is not None else ""
        every = {**keys[who], **headers}
        return Client().generic(
            method, f"/api/v1/{path}", data, content_type="application/json", headers=every
        )

    return send


def number_of(caller) -> int:
    return Membership.objects.get(user=caller.user, team=caller.team).pk


def test_members_are_listed_for_everybody_in_the_team_alone(call) -> None:
    shown = call("teammate", "GET", "members/").json()["results"]
    assert [(one["user"], one["role"]) for one in shown] == [("tim", "viewer"), ("olga", "admin")]
    assert [one["user"] for one in call("outsider", "GET", "members/").json()["results"]] == ["otto"]


def test_an_admin_changes_a_role_and_removes(call, people) -> None:
    path = f"members/{number_of(people.teammate)}/"
    reply = call("owner", "PATCH", path, {"role": "editor"})
    assert (reply.status_code, reply.json()["role"]) == (200, "editor")
    assert call("teammate", "PATCH", path, {"role": "admin"}).status_code == 403
    assert call("outsider", "PATCH", path, {"role": "viewer"}).status_code == 404
    assert call("outsider", "DELETE", path).status_code == 404
    assert call("owner", "PATCH", path, {"role": "king"}).status_code == 400
    assert call("owner", "DELETE", path).status_code == 204
    assert call("teammate", "GET", "members/").status_code == 401  # their token ended with the membership


def test_the_last_admin_stays(call, people) -> None:
    path = f"members/{number_of(people.owner)}/"
    for reply in (call("owner", "DELETE", path), call("owner", "PATCH", path, {"role": "viewer"})):
        assert (reply.status_code, reply.json()["code"]) == (409, "last_admin")


def test_an_invitation_is_made_used_and_listed_with_its_state(call) -> None:
    made = call("owner", "POST", "invitations/", {"role": "editor", "note": "Nora"})
    assert made.status_code == 201
    link = made.json()["link"]
    assert link.startswith("http://testserver/join/ti_")
    assert made.json()["state"] == "open"
    Client().post(
        link.removeprefix("http://testserver"), {"username": "nora", "password": "a-long-pass-phrase"}
    )
    (shown,) = call("owner", "GET", "invitations/").json()["results"]
    assert (shown["state"], shown["accepted_by"], shown["created_by"]) == ("accepted", "nora", "olga")
    assert "link" not in shown


def test_an_invitation_is_revoked_by_admins_of_its_team_alone(call) -> None:
    path = f"invitations/{call('owner', 'POST', 'invitations/', {}).json()['id']}/"
    assert call("outsider", "GET", path).status_code == 404
    assert call("outsider", "DELETE", path).status_code == 404
    assert call("teammate", "GET", "invitations/").status_code == 403
    assert call("owner", "DELETE", path).status_code == 204
    assert call("owner", "GET", path).json()["state"] == "revoked"


@pytest.mark.parametrize("body", [{"days": 0}, {"days": 31}, {"role": "king"}, {"note": "x" * 81}])
def test_an_invitation_out_of_bounds_is_refused(call, body) -> None:
    assert call("owner", "POST", "invitations/", body).status_code == 400
    assert not Invitation.objects.exists()


def test_a_replayed_answer_does_not_hold_the_link(call) -> None:
    first, second = (call("owner", "POST", "invitations/", {}, **{"idempotency-key": "k"}) for _ in range(2))
    assert second.json() == {**first.json(), "link": None}
    assert first.json()["link"] not in str(IdempotentReply.objects.values())
    assert Invitation.objects.count() == 1


@pytest.fixture
def lines(people) -> None:
    for who in ("owner", "outsider"):
        for number in range(3):
            audit_record(
                caller=getattr(people, who), action="deployment.created", target=f"shop-{number}", replicas=1
            )
    audit_record(caller=people.teammate, action="signin", target="tim")
    audit_record(caller=people.owner, action="signing.key_changed", target="key")


@pytest.mark.parametrize(
    ("query", "targets"),
    [
        ("action=deployment", ["shop-2", "shop-1", "shop-0"]),
        ("action=deployment.created&target=OP-1", ["shop-1"]),
        ("action=signin", ["tim"]),
        ("action=deploy", []),
        ("actor=TIM&action=signin", ["tim"]),
        ("action=deployment&since=2100-01-01T00:00:00Z", []),
        ("action=deployment&until=2100-01-01T00:00:00Z&limit=2", ["shop-2", "shop-1"]),
    ],
)
def test_the_log_is_filtered_and_holds_the_teams_lines_alone(call, lines, query, targets) -> None:
    page = call("owner", "GET", f"audit/?{query}").json()
    assert [one["target"] for one in page["results"]] == targets
    assert {one["actor"].split()[0] for one in page["results"]} <= {"olga", "tim"}


def test_the_log_goes_on_page_by_page(call, lines) -> None:
    seen, path = [], "audit/?limit=2"
    while path:
        page = call("owner", "GET", path).json()
        seen += [one["id"] for one in page["results"]]
        path = (page["next"] or "").removeprefix("http://testserver/api/v1/")
    whole = AuditEvent.objects.filter(team__slug="house").order_by("-id").values_list("id", flat=True)
    assert seen == list(whole)


def test_the_log_is_for_admins_and_says_what_is_wrong_with_a_filter(call, lines) -> None:
    assert call("teammate", "GET", "audit/").status_code == 403
    for query in ("since=yesterday", "action=" + "x" * 201):
        assert call("owner", "GET", f"audit/?{query}").status_code == 400
    assert call("owner", "POST", "audit/", {}).status_code == 403
