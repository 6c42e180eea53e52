"""What every page's frame needs: the rail, the team, the lamps of the shelf."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from console import navigation
from console.aspects import aspects

THEMES = ("light", "dark")


def shell(request: HttpRequest) -> dict[str, Any]:
    """The frame, built only when a template asks for it (error pages must not touch the database)."""
    theme = request.COOKIES.get("turnout_theme", "")
    return {"theme": theme if theme in THEMES else "auto", "shell": SimpleLazyObject(lambda: _frame(request))}


def _frame(request: HttpRequest) -> dict[str, Any]:
    team, role = getattr(request, "team", None), getattr(request, "role", None)
    role = str(getattr(role, "value", role) or "") or None
    return {
        "team": team,
        "role": role_word(role),
        "teams": list(getattr(request, "teams", None) or []),
        "switch_team_url": navigation.address("accounts:switch_team"),
        "signout_url": navigation.address("accounts:signout"),
        "sections": list(navigation.sections(request, role, team)),
        "aspects": aspects(team) if team is not None else [],
        "team_links": _links((("accounts:team", _("Members and roles")), ("accounts:tokens", _("API tokens")))),
        "person_links": _links((("accounts:account", _("Your account")),)),
    }


def role_word(role: str | None) -> str:
    """A role as a person reads it."""
    words = {"viewer": _("viewer"), "editor": _("editor"), "admin": _("admin")}
    return words.get(role or "", "")


def _links(pairs: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"url": url, "label": label} for name, label in pairs if (url := navigation.address(name))]
