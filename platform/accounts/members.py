"""Who is in a team, and with which role. People come in by invitation alone (accounts.invitations)."""

from __future__ import annotations

from django.db import transaction
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from accounts.models import Membership, Team
from accounts.selectors import admins_of, members_of
from common.errors import Conflict, NotFound


@transaction.atomic
def member_role_set(*, caller: Caller, membership_id: int, role: Role) -> Membership:
    """Give a member another role; a team keeps an admin."""
    caller.must_be(Role.ADMIN)
    membership = _locked(caller.team, membership_id)
    before = membership.role
    if before == role:
        return membership
    if role != Role.ADMIN:
        must_keep_an_admin(membership)
    membership.role = role
    membership.save(update_fields=["role", "updated_at"])
    audit_record(
        caller=caller,
        action="member.role_set",
        target=membership.user.get_username(),
        before=before,
        role=role,
    )
    return membership


@transaction.atomic
def member_remove(*, caller: Caller, membership_id: int) -> None:
    """Take a member out of the team: an admin anybody, everybody themselves; a team keeps an admin."""
    membership = _locked(caller.team, membership_id)
    if membership.user != caller.user:
        caller.must_be(Role.ADMIN)
    must_keep_an_admin(membership)
    membership.delete()
    audit_record(
        caller=caller, action="member.removed", target=membership.user.get_username(), role=membership.role
    )


def must_keep_an_admin(leaving: Membership) -> None:
    """Raise Conflict when nobody else can administer the team.

    The caller holds the team's row, so that two admins cannot remove each other at the same time.
    """
    if leaving.role == Role.ADMIN and not admins_of(leaving.team).exclude(pk=leaving.pk).exists():
        sentence = _("%(name)s is the last admin of %(team)s; make somebody else an admin first.")
        raise Conflict(sentence % {"name": leaving.user, "team": leaving.team}, code="last_admin")


def team_locked(team: Team) -> Team:
    """Hold the team's row until the transaction ends; rows that only point at it may still be written."""
    return Team.objects.select_for_update(no_key=True).get(pk=team.pk)


def _locked(team: Team, membership_id: int) -> Membership:
    team_locked(team)
    membership = members_of(team).select_related("team").filter(pk=membership_id).first()
    if membership is None:
        raise NotFound(_("There is no such member."))
    return membership
