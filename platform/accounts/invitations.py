"""Invitations: the one way into a team. An admin makes a link, who opens it agrees by using it, once."""

from __future__ import annotations

from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from accounts.members import team_locked
from accounts.models import Invitation, InvitationState, Membership, User
from accounts.selectors import invitation_find, invitations_of
from accounts.services import user_create
from accounts.tokens import INVITATION_PREFIX, token_digest, token_new
from common.errors import Conflict, Invalid, NotFound

MAX_DAYS = 30
DEFAULT_DAYS = 7
MAX_OPEN = 100
MAX_NOTE = 80


@transaction.atomic
def invitation_create(
    *, caller: Caller, role: Role, days: int = DEFAULT_DAYS, note: str = ""
) -> tuple[Invitation, str]:
    """Make an invitation; the second value is the secret of its link, shown once and kept nowhere."""
    caller.must_be(Role.ADMIN)
    if not 1 <= days <= MAX_DAYS:
        raise Invalid(
            _("An invitation lives 1 to %(most)s days.") % {"most": MAX_DAYS}, fields={"days": str(days)}
        )
    team_locked(caller.team)
    if invitations_of(caller.team).filter(state=InvitationState.OPEN).count() >= MAX_OPEN:
        raise Conflict(_("%(most)s invitations are open; revoke some first.") % {"most": MAX_OPEN})
    secret = token_new(INVITATION_PREFIX)
    invitation = Invitation.objects.create(
        team=caller.team,
        created_by=caller.user,
        digest=token_digest(secret),
        role=role,
        note=note.strip()[:MAX_NOTE],
        expires_at=timezone.now() + timedelta(days=days),
    )
    audit_record(caller=caller, action="invitation.created", target=invitation, role=role, days=days)
    return invitation, secret


@transaction.atomic
def invitation_revoke(*, caller: Caller, invitation_id: int) -> None:
    """End an open invitation at once; one that has ended otherwise stays as it is."""
    caller.must_be(Role.ADMIN)
    invitation = Invitation.objects.filter(team=caller.team, pk=invitation_id).first()
    if invitation is None:
        raise NotFound(_("There is no such invitation."))
    unused = Invitation.objects.filter(pk=invitation.pk, accepted_at=None, revoked_at=None)
    if unused.update(revoked_at=Now()):
        audit_record(caller=caller, action="invitation.revoked", target=invitation)


def invitation_open(secret: str) -> Invitation:
    """Return what a link invites to, or raise NotFound when it opens nothing (any more)."""
    invitation = invitation_find(secret)
    if invitation is None:
        raise NotFound(_("This invitation has been used or revoked, or its time is over; ask for a new one."))
    return invitation


@transaction.atomic
def invitation_accept(*, secret: str, user: User) -> Membership:
    """Let a person into the team by a link, which is used up."""
    team_locked(invitation_open(secret).team)
    # Looked at again behind the lock: nobody takes the role of who made it away meanwhile.
    invitation = invitation_open(secret)
    # Of two who use one link at once, the second waits here for the first and then changes no row.
    unused = Invitation.objects.filter(
        pk=invitation.pk, accepted_at=None, revoked_at=None, expires_at__gt=Now()
    )
    if unused.update(accepted_at=Now(), accepted_by=user) != 1:
        raise NotFound(_("This invitation has been used or revoked, or its time is over; ask for a new one."))
    try:
        with transaction.atomic():
            membership = Membership.objects.create(user=user, team=invitation.team, role=invitation.role)
    except IntegrityError as error:
        raise Conflict(_("You are a member of %(team)s already.") % {"team": invitation.team}) from error
    audit_record(
        caller=Caller(invitation.team, user, Role(invitation.role)),
        action="invitation.accepted",
        target=invitation,
        role=invitation.role,
        invited_by=str(invitation.created_by),
    )
    return membership


@transaction.atomic
def invitation_accept_new(*, secret: str, username: str, password: str) -> Membership:
    """Make an account and let it into the team by a link; without the one there is not the other."""
    invitation_open(secret)
    return invitation_accept(secret=secret, user=user_create(username=username, password=password))
