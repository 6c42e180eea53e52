"""Default deny for the REST API: a view without `grants` is refused, whoever calls.

class LayoutViewSet(TeamScoped, viewsets.ModelViewSet):
    grants = READ_WRITE                       # GET: viewer + scope read; the rest: editor + scope write
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from django.utils.translation import gettext as _
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from accounts.access import SCOPE_ROLE, Role, Scope
from accounts.caller import Caller
from accounts.selectors import caller_of
from common.closed_requests import ClosedRequest

if TYPE_CHECKING:
    from rest_framework.views import APIView


@dataclass(frozen=True, slots=True)
class Grant:
    """The role that a person needs and the scope that a token needs."""

    role: Role
    scope: Scope


READ = Grant(Role.VIEWER, Scope.READ)
WRITE = Grant(Role.EDITOR, Scope.WRITE)
DEPLOY = Grant(Role.EDITOR, Scope.DEPLOY)
MANAGE = Grant(Role.ADMIN, Scope.ADMIN)


@dataclass(frozen=True, slots=True)
class Grants:
    """What a view needs to read and to change."""

    read: Grant | None
    change: Grant | None

    def for_method(self, method: str) -> Grant | None:
        """Return the grant of an HTTP method; None means that nobody may."""
        return self.read if method in SAFE_METHODS else self.change


READ_ONLY = Grants(READ, None)
READ_WRITE = Grants(READ, WRITE)
READ_DEPLOY = Grants(READ, DEPLOY)
READ_MANAGE = Grants(READ, MANAGE)
MANAGE_ONLY = Grants(MANAGE, MANAGE)


class GrantedByRoleAndScope(BasePermission):
    """The one permission class: role of the caller, scope of the token."""

    message: str | None = None  # why it was refused; the framework tells it

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Whether the view grants this caller the method."""
        grants: Grants | None = getattr(view, "grants", None)
        caller: Caller | None = getattr(request._request, "caller", None)
        grant = grants.for_method(request.method or "") if grants else None
        if grant is None:
            return False
        if not caller:
            if request.user.is_authenticated:
                self.message = _("You belong to no team yet; ask an admin of a team to invite you.")
            return False
        refusal = refusal_of(caller, grant)
        if refusal:
            self.message = refusal
        return not refusal


def refusal_of(caller: Caller, grant: Grant) -> str:
    """Say why a caller has no grant, empty when they have it. The role comes first: it decides which scopes one can have."""
    lacks_scope = caller.token is not None and grant.scope.value not in caller.token.scopes
    if not lacks_scope and caller.role.covers(grant.role):
        return ""
    # A token acts with no more than its scopes need; what its maker could give another one is the maker's own role.
    person = caller_of(caller.user, caller.team.pk) if caller.token and caller.user else caller
    role = person.role if person else caller.role
    needed = max(grant.role, SCOPE_ROLE[grant.scope], key=lambda one: one.rank) if lacks_scope else grant.role
    if not role.covers(needed):
        sentence = _("This needs the role %(needed)s; yours is %(role)s.")
        return sentence % {"needed": needed.label, "role": role.label}
    sentence = _("This token lacks the scope “%(scope)s”; make one that has it under API tokens.")
    return sentence % {"scope": grant.scope.value}


class TeamScoped(ClosedRequest):
    """Mixin for REST views: `self.caller`, and querysets cut to the caller's team. Lists show nothing of others."""

    grants: ClassVar[Grants]
    request: Any
    queryset: Any

    @property
    def caller(self) -> Caller:
        """Return who calls."""
        return self.request._request.caller  # type: ignore[attr-defined]

    def get_queryset(self) -> Any:
        """Return the team's rows only (and none while the schema is being drawn)."""
        queryset = self.queryset.all()
        if getattr(self, "swagger_fake_view", False):
            return queryset.none()
        return queryset.filter(team=self.caller.team)
