"""Who is calling, for services: a person in a team, or a token of a team."""

from __future__ import annotations

from dataclasses import dataclass

from accounts.access import Role
from accounts.models import ApiToken, Team, User
from common.errors import Forbidden


@dataclass(frozen=True, slots=True)
class Caller:
    """The actor of a service call. Services take it as `caller=`; it names the team that owns what is made."""

    team: Team
    user: User | None
    role: Role
    token: ApiToken | None = None

    @property
    def name(self) -> str:
        """Return the name for the audit log."""
        person = self.user.get_username() if self.user else "—"
        return f"{person} ({self.token.name})" if self.token else person

    def must_be(self, needed: Role) -> None:
        """Raise Forbidden unless the role covers what is needed."""
        if not self.role.covers(needed):
            raise Forbidden(f"This needs the role {needed.label}; yours is {self.role.label}.")
