"""Django's admin: what is done there is audited, and it cannot break what the console protects."""

from __future__ import annotations

import html

import pytest
from django.db import connection
from django.test import Client

from accounts.models import AuditEvent, Membership, Team, User
from accounts.ownership import NAMES, owned_by, team_owned_models
from tests.contracts.house import furnish

STAFF = "ruth"


@pytest.fixture
def staff(people) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser(STAFF))
    return client


def members_form(team: Team, *rows: dict[str, object], **more: object) -> dict[str, object]:
    """Return what the page of a team sends."""
    form: dict[str, object] = {
        "name": team.name, "slug": team.slug, "memberships-TOTAL_FORMS": len(rows),
        "memberships-INITIAL_FORMS": sum("id" in row for row in rows), **more,
    }  # fmt: skip
    for number, row in enumerate(rows):
        form |= {f"memberships-{number}-{key}": value for key, value in {"team": team.pk, **row}.items()}
    return form


def row_of(caller, **more: object) -> dict[str, object]:
    found = Membership.objects.get(user=caller.user, team=caller.team)
    return {"id": found.pk, "user": found.user_id, "role": found.role, **more}


def lines(*actions: str) -> list[tuple[str, str, str]]:
    found = AuditEvent.objects.filter(action__in=actions).order_by("id")
    assert {one.actor for one in found} <= {f"{STAFF} (administration)"}
    return [(one.action, one.target, one.detail.get("role", "")) for one in found]


def test_members_added_changed_and_removed_there_are_audited_in_their_team(staff, people) -> None:
    house = people.owner.team
    form = members_form(
        house, row_of(people.owner), row_of(people.teammate, role="editor"),
        {"user": people.outsider.user.pk, "role": "viewer"},
    )  # fmt: skip
    assert staff.post(f"/admin/accounts/team/{house.pk}/change/", form).status_code == 302
    assert lines("member.added", "member.changed") == [
        ("member.added", "otto", "viewer"), ("member.changed", "tim", "editor"),
    ]  # fmt: skip
    form = members_form(house, row_of(people.owner), row_of(people.teammate, DELETE="on"), name="Manor")
    assert staff.post(f"/admin/accounts/team/{house.pk}/change/", form).status_code == 302
    assert lines("member.removed", "team.changed") == [
        ("member.removed", "tim", "editor"), ("team.changed", "Manor", ""),
    ]  # fmt: skip
    assert set(AuditEvent.objects.filter(action__startswith="member.").values_list("team", flat=True)) == {
        house.pk
    }
    assert "member.removed" in people.client("owner").get("/audit/").content.decode()


@pytest.mark.parametrize("change", [{"role": "viewer"}, {"DELETE": "on"}])
def test_a_team_keeps_an_admin_there_too(staff, people, change) -> None:
    house = people.owner.team
    form = members_form(house, row_of(people.owner, **change), row_of(people.teammate))
    reply = staff.post(f"/admin/accounts/team/{house.pk}/change/", form)
    assert reply.status_code == 200
    assert "A team needs an admin whose account is active." in reply.content.decode()
    assert people.owner.team.memberships.filter(role="admin").exists()
    assert not lines("member.changed", "member.removed")


def test_an_account_changed_there_is_audited_without_its_values(staff, people) -> None:
    tim = people.teammate.user
    form = {
        "username": "tim", "email": "tim@example.org", "is_active": "on", "is_staff": "on",
        "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00",
    }  # fmt: skip
    assert staff.post(f"/admin/accounts/user/{tim.pk}/change/", form).status_code == 302
    line = AuditEvent.objects.get(action="account.changed")
    assert (line.target, line.team) == ("tim", people.teammate.team)
    assert line.detail["is_staff"] is True
    assert "Email address" in line.detail["changed"]
    assert "example.org" not in str(line.detail)


def test_a_password_set_there_is_audited(staff, people) -> None:
    tim = people.teammate.user
    form = {
        "password1": "a-long-pass-phrase",
        "password2": "a-long-pass-phrase",
        "usable_password": "true",
        "set-password": "1",
    }
    assert staff.post(f"/admin/accounts/user/{tim.pk}/password/", form).status_code == 302
    line = AuditEvent.objects.get(action="account.changed")
    assert line.target == "tim"
    assert "pass-phrase" not in str(line.detail)
    tim.refresh_from_db()
    assert tim.check_password("a-long-pass-phrase")


def test_an_account_deleted_there_is_audited_by_the_page_and_by_the_action(staff, people) -> None:
    for number, path in enumerate(("page", "action")):
        user = User.objects.create_user(f"temp{number}")
        Membership.objects.create(user=user, team=people.owner.team, role="viewer")
        if path == "page":
            staff.post(f"/admin/accounts/user/{user.pk}/delete/", {"post": "yes"})
        else:
            form = {"action": "delete_selected", "_selected_action": user.pk, "post": "yes"}
            staff.post("/admin/accounts/user/", form)
        assert not User.objects.filter(pk=user.pk).exists()
    assert [line[1] for line in lines("account.deleted")] == ["temp0", "temp1"]
    assert set(AuditEvent.objects.filter(action="account.deleted").values_list("team", flat=True)) == {
        people.owner.team.pk
    }


def test_the_last_admin_of_a_team_is_neither_deleted_nor_closed(staff, people) -> None:
    olga = people.owner.user
    sentence = "olga is the last admin of House; make somebody else an admin first."
    assert sentence in staff.post(f"/admin/accounts/user/{olga.pk}/delete/", {"post": "yes"}).content.decode()
    form = {"action": "delete_selected", "_selected_action": olga.pk, "post": "yes"}
    assert sentence in staff.post("/admin/accounts/user/", form).content.decode()
    form = {"username": "olga", "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    assert sentence in staff.post(f"/admin/accounts/user/{olga.pk}/change/", form).content.decode()
    olga.refresh_from_db()
    assert olga.is_active
    assert not AuditEvent.objects.exists()


def test_a_team_that_owns_something_is_not_deleted_and_the_page_says_what_it_owns(staff, people) -> None:
    furnish(people.owner)
    house = people.owner.team
    page = html.unescape(
        staff.post(f"/admin/accounts/team/{house.pk}/delete/", {"post": "yes"}).content.decode()
    )
    for thing in (
        "House owns 1 model, 1 upload, ",
        "1 layout",
        "1 domain map",
        "1 corpus",
        "1 job",
        "1 deployment (",
    ):
        assert thing in page
    form = {"action": "delete_selected", "_selected_action": house.pk, "post": "yes"}
    assert "House owns 1 model" in staff.post("/admin/accounts/team/", form).content.decode()
    assert Team.objects.filter(pk=house.pk).exists()
    assert not AuditEvent.objects.exists()


def test_the_page_says_it_in_chinese(staff, people) -> None:
    furnish(people.owner)
    reply = staff.get(
        f"/admin/accounts/team/{people.owner.team.pk}/delete/", headers={"accept-language": "zh-hans"}
    )
    assert "House 拥有 1 个模型、1 个上传文件、" in reply.content.decode()


def test_a_team_with_nothing_but_people_tokens_and_invitations_is_deleted(staff, people) -> None:
    people.bearer("owner", "read")
    people.client("owner").post("/team/", {"role": "viewer", "days": 3})
    house = people.owner.team
    assert owned_by(house) == []
    assert staff.post(f"/admin/accounts/team/{house.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Team.objects.filter(pk=house.pk).exists()
    assert lines("team.deleted") == [("team.deleted", "House", "")]
    assert AuditEvent.objects.get(action="team.deleted").team_id == house.pk


def test_a_team_made_there_needs_an_admin_and_is_audited(staff, people) -> None:
    fresh = Team(name="New", slug="new")
    tim = people.teammate.user.pk
    for role, status in (("viewer", 200), ("admin", 302)):
        form = members_form(fresh, {"user": tim, "role": role, "team": ""})
        assert staff.post("/admin/accounts/team/add/", form).status_code == status
    assert lines("team.created", "member.added") == [
        ("member.added", "tim", "admin"),
        ("team.created", "New", ""),
    ]


def test_ones_own_password_and_signing_out_go_the_way_of_the_console(staff) -> None:
    assert staff.get("/admin/password_change/")["Location"] == "/account/password/"
    assert staff.post("/admin/logout/")["Location"] == "/signin/"
    assert AuditEvent.objects.get().action == "signout"
    assert staff.get("/admin/").status_code == 302


def test_everything_that_can_belong_to_a_team_has_a_name() -> None:
    assert {model._meta.label for model, _column in team_owned_models()} == set(NAMES)


def test_a_change_is_not_kept_when_its_line_cannot_be_written(staff, people) -> None:
    house = people.owner.team
    form = members_form(house, row_of(people.owner), row_of(people.teammate, role="editor"))
    client = Client(raise_request_exception=False)
    client.cookies = staff.cookies
    with connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE accounts_auditevent ADD CONSTRAINT shut CHECK (action <> 'member.changed')"
        )
    assert client.post(f"/admin/accounts/team/{house.pk}/change/", form).status_code == 500
    assert row_of(people.teammate)["role"] == "viewer"
