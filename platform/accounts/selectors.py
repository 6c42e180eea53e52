"""Look-ups of people, teams and tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import Case, CharField, Exists, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Now

from accounts.access import SCOPE_ROLE, Role, Scope
from accounts.caller import Caller
from accounts.models import ApiToken, AuditEvent, Invitation, InvitationState, Membership, Team, User
from accounts.tokens import token_digest


def memberships_of(user: User) -> QuerySet[Membership]:
    """Return a person's memberships, oldest first, with their teams."""
    return Membership.objects.filter(user=user).select_related("team").order_by("id")


def caller_of(user: User, team_id: int | None = None) -> Caller | None:
    """Return the person as a caller in the chosen team (or their first), None for somebody without a team."""
    memberships = memberships_of(user)
    chosen = (memberships.filter(team_id=team_id).first() if team_id else None) or memberships.first()
    return Caller(team=chosen.team, user=user, role=Role(chosen.role)) if chosen else None


def token_find(secret: str) -> ApiToken | None:
    """Return the live token of this secret: neither revoked nor expired, its maker still active."""
    live = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=Now()))
    return (
        ApiToken.objects.filter(live, digest=token_digest(secret), created_by__is_active=True)
        .select_related("team", "created_by")
        .first()
    )


def caller_of_token(token: ApiToken) -> Caller | None:
    """Return the token as a caller: its maker's present role, cut down to what its scopes need."""
    membership = Membership.objects.filter(user=token.created_by, team=token.team).first()
    if membership is None:
        return None
    highest = max((SCOPE_ROLE[Scope(scope)] for scope in token.scopes), key=lambda role: role.rank)
    role = min(Role(membership.role), highest, key=lambda role: role.rank)
    return Caller(team=token.team, user=token.created_by, role=role, token=token)


def tokens_of(team: Team) -> QuerySet[ApiToken]:
    """Return the team's tokens, newest first."""
    return ApiToken.objects.filter(team=team).select_related("created_by").order_by("-id")


def members_of(team: Team) -> QuerySet[Membership]:
    """Return the team's members, oldest first."""
    return Membership.objects.filter(team=team).select_related("user").order_by("id")


def admins_of(team: Team) -> QuerySet[Membership]:
    """Return the memberships of those who can administer the team now."""
    return Membership.objects.filter(team=team, role=Role.ADMIN, user__is_active=True)


def invitations_with_state() -> QuerySet[Any]:
    """Return invitations with `state`, as the database's clock and the maker's present role make it."""
    makers = Membership.objects.filter(
        team=OuterRef("team"), user=OuterRef("created_by"), role=Role.ADMIN, user__is_active=True
    )
    state = Case(
        When(accepted_at__isnull=False, then=Value(InvitationState.ACCEPTED)),
        When(revoked_at__isnull=False, then=Value(InvitationState.REVOKED)),
        When(expires_at__lte=Now(), then=Value(InvitationState.EXPIRED)),
        When(~Exists(makers), then=Value(InvitationState.VOID)),
        default=Value(InvitationState.OPEN),
        output_field=CharField(),
    )
    return Invitation.objects.annotate(state=state)


def invitations_of(team: Team) -> QuerySet[Any]:
    """Return the team's invitations with their state, newest first."""
    found = invitations_with_state().filter(team=team)
    return found.select_related("created_by", "accepted_by").order_by("-id")


def invitation_find(secret: str) -> Invitation | None:
    """Return the invitation that this link opens now."""
    found = invitations_with_state().filter(digest=token_digest(secret), state=InvitationState.OPEN)
    return found.select_related("team", "created_by").first()


def audit_of(
    team: Team, *, actor: str = "", action: str = "", target: str = "", words: str = "",
    since: datetime | None = None, until: datetime | None = None,
) -> QuerySet[AuditEvent]:  # fmt: skip
    """Return the lines of the team's audit log that fit, newest first.

    `action` is a whole action or its beginning up to a dot ("signin", "deployment"); `actor` and `target` are contained
    in what the line names; `since` and `until` bound its time, the second one excluded; `words` stand in any of
    the three.
    """
    found = AuditEvent.objects.filter(team_id=team.pk).order_by("-id")
    if actor:
        found = found.filter(actor__icontains=actor)
    if action:
        found = found.filter(Q(action=action) | Q(action__startswith=f"{action}."))
    if target:
        found = found.filter(target__icontains=target)
    if words:
        found = found.filter(
            Q(actor__icontains=words) | Q(action__icontains=words) | Q(target__icontains=words)
        )
    if since is not None:
        found = found.filter(at__gte=since)
    return found if until is None else found.filter(at__lt=until)
