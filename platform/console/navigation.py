"""What stands in the rail. An item shows only when its page exists and the person's role may open it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from console import counts

Words = str | Promise
ROLE_RANKS = {"viewer": 1, "editor": 2, "admin": 3}


@dataclass(frozen=True, slots=True)
class Item:
    """One turnout of the rail."""

    key: str
    label: Words
    url_name: str
    min_role: str = "viewer"
    shortcut: str = ""
    count: Callable[[Any], int] | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of the rail with a name."""

    label: Words
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """An item as this person sees it on this page."""

    key: str
    label: Words
    url: str
    current: bool
    shortcut: str
    count: int | None


SECTIONS: tuple[Section, ...] = (
    Section(
        "",
        (
            Item("overview", _("Overview"), "console:overview", shortcut="o"),
            Item("live", _("Live"), "telemetry:live", shortcut="l"),
            Item("playground", _("Playground"), "console:playground", shortcut="p"),
        ),
    ),
    Section(
        _("Design"),
        (
            Item("models", _("Models"), "registry:list", shortcut="m", count=counts.models),
            Item("layouts", _("Layouts"), "layouts:list", shortcut="b", count=counts.layouts),
            Item("domains", _("Domains"), "routing:list", shortcut="d", count=counts.domains),
        ),
    ),
    Section(
        _("Train"),
        (
            Item("data", _("Logs and corpora"), "corpora:list", shortcut="c", count=counts.corpora),
            Item("jobs", _("Jobs"), "jobs:list", shortcut="j", count=counts.running_jobs),
        ),
    ),
    Section(
        pgettext_lazy("section of the navigation", "Serve"),
        (
            Item("deployments", _("Deployments"), "deployments:list", shortcut="s", count=counts.deployments),
            Item("keys", _("Gateway and keys"), "gateway:keys", shortcut="k"),
        ),
    ),
    Section(
        _("Team"),
        (
            Item("team", _("Members and roles"), "accounts:team"),
            Item("tokens", _("API tokens"), "accounts:tokens"),
            Item("audit", _("Audit log"), "accounts:audit", min_role="admin"),
        ),
    ),
)


def address(url_name: str) -> str | None:
    """The address of a page, or None while its room has not been built."""
    try:
        return reverse(url_name)
    except NoReverseMatch:
        return None


def may_see(role: str | None, item: Item) -> bool:
    """Whether a role reaches the item's least role."""
    return ROLE_RANKS.get(role or "", 0) >= ROLE_RANKS[item.min_role]


def sections(request: HttpRequest, role: str | None, team: Any) -> Iterator[dict[str, Any]]:
    """The rail for this request: sections with at least one item."""
    for section in SECTIONS:
        items = [shown for item in section.items if (shown := _shown(item, request, role, team))]
        if items:
            yield {"label": section.label, "items": items}


def _shown(item: Item, request: HttpRequest, role: str | None, team: Any) -> Shown | None:
    url = address(item.url_name)
    if url is None or not may_see(role, item):
        return None
    here = request.path == url or (url != "/" and request.path.startswith(url))
    count = item.count(team) if item.count and team is not None else None
    return Shown(item.key, item.label, url, here, item.shortcut, count)
