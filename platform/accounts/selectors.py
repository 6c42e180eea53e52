"""Look-ups of people, teams and tokens."""

from __future__ import annotations

from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from accounts.access import SCOPE_ROLE, Role, Scope
from accounts.caller import Caller
from accounts.models import ApiToken, Membership, Team, User
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
