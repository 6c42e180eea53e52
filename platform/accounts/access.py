"""Who may call a page. Default deny: a view that says nothing is refused.

    @role_required(Role.EDITOR)      a member of the active team with at least this role
    @signed_in                       any signed-in person
    @public                          everybody; each use is listed in tests/contracts/test_default_deny.py

REST views say it with `grants` (accounts.permissions); sockets with `role` (accounts.live).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

View = TypeVar("View", bound=Callable[..., Any])


class Role(TextChoices):
    """What a member may do in a team; each role holds those before it."""

    VIEWER = "viewer", _("Viewer")
    EDITOR = "editor", _("Editor")
    ADMIN = "admin", _("Admin")

    @property
    def rank(self) -> int:
        """Return the place in the order viewer < editor < admin."""
        return list(Role).index(self)

    def covers(self, needed: Role) -> bool:
        """Whether this role holds the needed one."""
        return self.rank >= needed.rank


class Scope(TextChoices):
    """What an API token may be used for."""

    READ = "read", _("Read everything of the team")
    WRITE = "write", _("Create and change models, layouts, data and jobs")
    DEPLOY = "deploy", _("Deploy, promote and roll back")
    INFER = "infer", _("Call deployed models")
    ADMIN = "admin", _("Manage the team and its tokens")


# The role that somebody needs to hand out a scope, and that a token of this scope acts with.
SCOPE_ROLE = {
    Scope.READ: Role.VIEWER,
    Scope.INFER: Role.VIEWER,
    Scope.WRITE: Role.EDITOR,
    Scope.DEPLOY: Role.EDITOR,
    Scope.ADMIN: Role.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Access:
    """The declaration that a page carries."""

    public: bool = False
    role: Role | None = None


def _declare(access: Access) -> Callable[[View], View]:
    def mark(view: View) -> View:
        view.access = access  # type: ignore[attr-defined]
        return view

    return mark


def public(view: View) -> View:
    """Everybody may call this view."""
    return _declare(Access(public=True))(view)


def signed_in(view: View) -> View:
    """Any signed-in person may call this view."""
    return _declare(Access())(view)


def role_required(role: Role) -> Callable[[View], View]:
    """Only members of the active team with at least this role may call the view."""
    return _declare(Access(role=role))
