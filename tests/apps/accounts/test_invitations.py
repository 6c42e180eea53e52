"""Invitations: one person, once, with their consent; and nobody else."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.utils import timezone

from accounts import invitations
from accounts.access import Role
from accounts.invitations import (
    invitation_accept,
    invitation_accept_new,
    invitation_create,
    invitation_revoke,
)
from accounts.models import AuditEvent, Invitation, Membership, User
from accounts.selectors import caller_of, invitations_of
from common.errors import Conflict, DomainError, Forbidden, Invalid, NotFound
from tests.people import make_people

PASSWORD = "a-long-pass-phrase"
NEWCOMER = {"username": "nora", "password": PASSWORD}


def invite(people, role: Role = Role.EDITOR, **more) -> tuple[Invitation, str]:
    return invitation_create(caller=people.owner, role=role, **more)


def role_in(team, name: str) -> str | None:
    return Membership.objects.filter(team=team, user__username=name).values_list("role", flat=True).first()


def state_of(invitation: Invitation) -> str:
    return invitations_of(invitation.team).get(pk=invitation.pk).state


def test_a_newcomer_makes_an_account_and_is_in_with_the_role_of_the_link(people) -> None:
    invitation, secret = invite(people)
    browser = Client()
    page = browser.get(f"/join/{secret}/")
    assert page.status_code == 200
    assert "House" in page.content.decode()
    reply = browser.post(f"/join/{secret}/", NEWCOMER)
    assert (reply.status_code, reply["Location"]) == (302, "/")
    assert role_in(people.owner.team, "nora") == "editor"
    assert browser.get("/team/").status_code == 200
    assert state_of(invitation) == "accepted"
    assert Client().get(f"/join/{secret}/").status_code == 404


def test_a_person_with_an_account_joins_only_when_they_say_so(people) -> None:
    _invitation, secret = invite(people, Role.VIEWER)
    otto = people.client("outsider")
    assert "Join as otto" in otto.get(f"/join/{secret}/").content.decode()
    assert role_in(people.owner.team, "otto") is None
    assert otto.post(f"/join/{secret}/").status_code == 302
    assert role_in(people.owner.team, "otto") == "viewer"
    assert "House" in otto.get("/team/").content.decode()  # the team joined is the active one
    assert role_in(people.outsider.team, "otto") == "admin"


def test_no_form_enrols_somebody_by_name(people) -> None:
    reply = people.client("owner").post("/team/", {"username": "otto", "role": "viewer"})
    assert reply.status_code == 422
    assert role_in(people.owner.team, "otto") is None


def test_the_link_is_shown_once_and_only_its_hash_is_kept(people) -> None:
    browser = people.client("owner")
    page = browser.post("/team/", {"role": "viewer", "days": 3, "note": "Nora"}).content.decode()
    secret = re.search(r"http://testserver/join/(ti_[\w-]{43})/", page)[1]
    assert secret not in browser.get("/team/").content.decode()
    assert secret not in str([list(Invitation.objects.values()), list(AuditEvent.objects.values())])
    made = Invitation.objects.get()
    assert (made.role, made.note) == ("viewer", "Nora")
    assert timedelta(days=2.9) < made.expires_at - timezone.now() < timedelta(days=3.1)
    assert Client().get(f"/join/{secret}/").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_a_link_lets_one_person_in_however_many_try_at_once() -> None:
    people = make_people()
    _invitation, secret = invite(people)

    def attempt(number: int) -> bool:
        try:
            invitation_accept_new(secret=secret, username=f"u{number}", password=PASSWORD)
        except DomainError:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert Membership.objects.filter(team=people.owner.team).count() == 3
    assert User.objects.filter(username__startswith="u").count() == 1


def test_an_expired_a_revoked_and_an_invented_link_look_alike(people) -> None:
    expired, first = invite(people)
    Invitation.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    revoked, second = invite(people)
    invitation_revoke(caller=people.owner, invitation_id=revoked.pk)
    bodies = set()
    for secret in (first, second, "ti_" + "x" * 43):
        for reply in (Client().get(f"/join/{secret}/"), Client().post(f"/join/{secret}/", NEWCOMER)):
            assert reply.status_code == 404
        bodies.add(
            re.sub(
                r'<code class="berth">\w+</code>|[\w-]{46}|value="\w{64}"|csrf="\w+"',
                "",
                Client().get(f"/join/{secret}/").content.decode(),
            )
        )
    assert len(bodies) == 1
    assert [state_of(one) for one in (expired, revoked)] == ["expired", "revoked"]
    assert not User.objects.filter(username="nora").exists()


def test_who_was_removed_has_left_no_door_open(people) -> None:
    """Neither an admin who lost the role nor one whose account was closed lets people in."""
    second = User.objects.create_user("ada")
    membership = Membership.objects.create(user=second, team=people.owner.team, role=Role.ADMIN)
    invitation, secret = invitation_create(caller=caller_of(second), role=Role.ADMIN)
    Membership.objects.filter(pk=membership.pk).update(role=Role.EDITOR)
    with pytest.raises(NotFound):
        invitation_accept(secret=secret, user=people.outsider.user)
    assert state_of(invitation) == "void"
    Membership.objects.filter(pk=membership.pk).update(role=Role.ADMIN)
    User.objects.filter(pk=second.pk).update(is_active=False)
    with pytest.raises(NotFound):
        invitation_accept(secret=secret, user=people.outsider.user)


def test_a_member_does_not_use_the_link_up(people) -> None:
    invitation, secret = invite(people, Role.ADMIN)
    tim = people.client("teammate")
    assert "Join as" not in tim.get(f"/join/{secret}/").content.decode()
    with pytest.raises(Conflict):
        invitation_accept(secret=secret, user=people.teammate.user)
    assert state_of(invitation) == "open"
    assert role_in(people.owner.team, "tim") == "viewer"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"password": "short"}, "password"),
        ({"username": "olga"}, "username"),
        ({"username": "no spaces"}, "username"),
    ],
)
def test_a_refused_account_leaves_the_link_usable_and_says_at_which_field(people, wrong, field) -> None:
    invitation, secret = invite(people)
    reply = Client().post(f"/join/{secret}/", NEWCOMER | wrong)
    assert reply.status_code == 422
    assert list(reply.context["form"].errors) == [field]
    assert state_of(invitation) == "open"


def test_a_weak_password_is_refused_in_the_readers_language(people) -> None:
    _invitation, secret = invite(people)
    reply = Client().post(
        f"/join/{secret}/", NEWCOMER | {"password": "short"}, headers={"accept-language": "zh-hans"}
    )
    assert "密码太短，至少需要 10 个字符。" in reply.content.decode()


def test_only_admins_invite_and_revoke(people) -> None:
    with pytest.raises(Forbidden):
        invitation_create(caller=people.teammate, role=Role.VIEWER)
    assert people.client("teammate").post("/team/", {"role": "viewer", "days": 3}).status_code == 403
    invitation, _secret = invite(people)
    with pytest.raises(Forbidden):
        invitation_revoke(caller=people.teammate, invitation_id=invitation.pk)
    assert "Invitations" not in people.client("teammate").get("/team/").content.decode()


def test_another_team_neither_sees_nor_ends_our_invitations(people) -> None:
    invitation, _secret = invite(people, note="amaranth")
    other = people.client("outsider")
    assert "amaranth" not in other.get("/team/").content.decode()
    assert other.post(f"/team/invitations/{invitation.pk}/revoke/").status_code == 404
    assert state_of(invitation) == "open"


@pytest.mark.parametrize("days", [0, 31, -1, 10**9])
def test_a_life_out_of_bounds_is_refused(people, days) -> None:
    with pytest.raises(Invalid):
        invite(people, days=days)
    assert people.client("owner").post("/team/", {"role": "viewer", "days": days}).status_code == 422
    assert not Invitation.objects.exists()


def test_a_team_has_a_bounded_number_of_open_invitations(people, monkeypatch) -> None:
    monkeypatch.setattr(invitations, "MAX_OPEN", 2)
    first, _secret = invite(people)
    invite(people)
    with pytest.raises(Conflict):
        invite(people)
    invitation_revoke(caller=people.owner, invitation_id=first.pk)
    invite(people)


def test_each_step_is_audited(people) -> None:
    invitation, secret = invite(people, note="Nora")
    revoked, _secret = invite(people)
    invitation_revoke(caller=people.owner, invitation_id=revoked.pk)
    invitation_revoke(caller=people.owner, invitation_id=revoked.pk)  # the second time nothing happens
    invitation_accept_new(secret=secret, **NEWCOMER)
    lines = (
        AuditEvent.objects.filter(team=people.owner.team)
        .order_by("id")
        .values_list("action", "actor", "target")
    )
    assert list(lines) == [
        ("invitation.created", "olga", f"#{invitation.pk} Nora"),
        ("invitation.created", "olga", f"#{revoked.pk}"),
        ("invitation.revoked", "olga", f"#{revoked.pk}"),
        ("invitation.accepted", "nora", f"#{invitation.pk} Nora"),
    ]


def test_the_database_refuses_an_invitation_that_ended_twice(people) -> None:
    invitation, _secret = invite(people)
    with pytest.raises(IntegrityError), transaction.atomic():
        Invitation.objects.filter(pk=invitation.pk).update(
            accepted_at=timezone.now(), revoked_at=timezone.now()
        )


def test_the_way_by_signing_in_leads_back_to_the_link(people) -> None:
    _invitation, secret = invite(people)
    page = Client().get(f"/join/{secret}/").content.decode()
    assert f'href="/signin/?next=/join/{secret}/"' in page
    otto = people.client("outsider")
    reply = otto.post("/signout/", {"next": f"/join/{secret}/"})
    assert reply["Location"] == f"/join/{secret}/"
