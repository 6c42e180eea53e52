"""Members: roles and removal, and a team that never loses its last admin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from accounts.access import Role
from accounts.members import member_remove, member_role_set
from accounts.models import AuditEvent, Membership, User
from accounts.selectors import caller_of
from common.errors import Conflict, DomainError, Forbidden, NotFound
from tests.people import make_people


def membership(caller) -> Membership:
    return Membership.objects.get(user=caller.user, team=caller.team)


def add_admin(people, name: str = "ada"):
    user = User.objects.create_user(name)
    Membership.objects.create(user=user, team=people.owner.team, role=Role.ADMIN)
    return caller_of(user)


def test_an_admin_changes_a_role_and_the_log_says_from_what_to_what(people) -> None:
    tim = membership(people.teammate)
    reply = people.client("owner").post(f"/team/members/{tim.pk}/role/", {"role": "editor"})
    assert reply.status_code == 302
    assert membership(people.teammate).role == "editor"
    line = AuditEvent.objects.get(action="member.role_set")
    assert (line.actor, line.target, line.detail) == ("olga", "tim", {"before": "viewer", "role": "editor"})


def test_only_admins_give_roles_and_remove_others(people) -> None:
    olga = membership(people.owner)
    for refused in (
        lambda: member_role_set(
            caller=people.teammate, membership_id=membership(people.teammate).pk, role=Role.ADMIN
        ),
        lambda: member_remove(caller=people.teammate, membership_id=olga.pk),
    ):
        with pytest.raises(Forbidden):
            refused()
    assert (
        people.client("teammate").post(f"/team/members/{olga.pk}/role/", {"role": "viewer"}).status_code
        == 403
    )


def test_another_teams_admin_does_not_find_our_members(people) -> None:
    tim = membership(people.teammate)
    for refused in (
        lambda: member_role_set(caller=people.outsider, membership_id=tim.pk, role=Role.ADMIN),
        lambda: member_remove(caller=people.outsider, membership_id=tim.pk),
    ):
        with pytest.raises(NotFound):
            refused()


def test_everybody_may_leave(people) -> None:
    tim = membership(people.teammate)
    assert people.client("teammate").post(f"/team/members/{tim.pk}/remove/").status_code == 302
    assert not Membership.objects.filter(pk=tim.pk).exists()
    assert AuditEvent.objects.get(action="member.removed").actor == "tim"


def test_the_last_admin_neither_leaves_nor_steps_down(people) -> None:
    olga = membership(people.owner)
    for refused in (
        lambda: member_remove(caller=people.owner, membership_id=olga.pk),
        lambda: member_role_set(caller=people.owner, membership_id=olga.pk, role=Role.VIEWER),
    ):
        with pytest.raises(Conflict, match="last admin"):
            refused()
    ada = add_admin(people)
    member_role_set(caller=people.owner, membership_id=olga.pk, role=Role.VIEWER)
    with pytest.raises(Conflict, match="ada is the last admin of House"):
        member_remove(caller=ada, membership_id=membership(ada).pk)


def test_an_admin_whose_account_is_closed_does_not_count(people) -> None:
    ada = add_admin(people)
    User.objects.filter(pk=ada.user.pk).update(is_active=False)
    with pytest.raises(Conflict):
        member_remove(caller=people.owner, membership_id=membership(people.owner).pk)


@pytest.mark.django_db(transaction=True)
def test_two_admins_who_remove_each_other_at_once_leave_one() -> None:
    people = make_people()
    callers = [people.owner, add_admin(people)]
    rows = [membership(one).pk for one in callers]

    def attempt(number: int) -> bool:
        try:
            member_remove(caller=callers[number], membership_id=rows[1 - number])
        except DomainError:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(attempt, range(2)))
    assert sorted(done) == [False, True]
    assert Membership.objects.filter(team=people.owner.team, role=Role.ADMIN).count() == 1


def test_a_role_that_does_not_exist_is_refused_by_name(people) -> None:
    reply = people.client("owner").post(
        f"/team/members/{membership(people.teammate).pk}/role/",
        {"role": "king"},
        headers={"accept": "application/json"},
    )
    assert reply.status_code == 422
    assert "viewer, editor, admin" in reply.json()["detail"]


def test_the_pages_search_goes_through_the_whole_log(people) -> None:
    tim = membership(people.teammate)
    for role in (*[Role.EDITOR, Role.VIEWER] * 30,):
        member_role_set(caller=people.owner, membership_id=tim.pk, role=role)
    olga = people.client("owner")
    olga.post("/team/", {"role": "viewer", "days": 3, "note": "needle"})
    for role in (*[Role.EDITOR, Role.VIEWER] * 30,):
        member_role_set(caller=people.owner, membership_id=tim.pk, role=role)
    found = olga.get("/audit/?q=NEEDLE")
    assert [one.action for one in found.context["page"]] == ["invitation.created"]
    assert (
        "q=member" in olga.get("/audit/?q=member").content.decode()
    )  # the way to the next page keeps the words
    assert len(olga.get("/audit/?q=no-such-word").context["page"]) == 0
    assert olga.get("/audit/?q=%00").status_code == 200
