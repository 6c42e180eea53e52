"""What every page's frame needs: the rail, the team, the lamps of the shelf."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from accounts.selectors import memberships_of
from console import navigation
from console.aspects import aspects

THEMES = ("light", "dark")


def shell(request: HttpRequest) -> dict[str, Any]:
    """The frame, built only when a template asks for it (error pages must not touch the database)."""
    theme = request.COOKIES.get("turnout_theme", "")
    return {"theme": theme if theme in THEMES else "auto", "shell": SimpleLazyObject(lambda: _frame(request))}


def _frame(request: HttpRequest) -> dict[str, Any]:
    caller = getattr(request, "caller", None) or None
    team = caller.team if caller else None
    return {
        "team": team,
        "role": caller.role.label if caller else "",
        "teams": [one.team for one in memberships_of(caller.user)] if caller and caller.user else [],
        "switch_team_url": navigation.address("accounts:team_switch"),
        "signout_url": navigation.address("accounts:signout"),
        "sections": list(navigation.sections(request, caller)),
        "aspects": aspects(team) if team is not None else [],
        "team_links": _links(
            (("accounts:team", _("Members and roles")), ("accounts:tokens", _("API tokens")))
        ),
        "person_links": _person_links(request),
    }


def _person_links(request: HttpRequest) -> list[dict[str, str]]:
    if not request.user.is_authenticated:
        return []
    every = (("accounts:password", _("Change your password")),)
    staff = (("admin:index", _("Administration of this installation")),) if request.user.is_staff else ()
    return _links((*every, *staff))


def _links(pairs: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"url": url, "label": label} for name, label in pairs if (url := navigation.address(name))]
