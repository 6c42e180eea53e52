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

from accounts.access import Role
from accounts.caller import Caller
from console import counts

Words = str | Promise


@dataclass(frozen=True, slots=True)
class Item:
    """One turnout of the rail."""

    key: str
    label: Words
    url_name: str
    min_role: Role = Role.VIEWER
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
            Item("jobs", _("Jobs"), "jobs:list", shortcut="j", count=counts.open_jobs),
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
            Item("api", _("API reference"), "api:reference"),
            Item("audit", _("Audit log"), "accounts:audit", min_role=Role.ADMIN),
        ),
    ),
)


def address(url_name: str) -> str | None:
    """The address of a page, or None while its room has not been built."""
    try:
        return reverse(url_name)
    except NoReverseMatch:
        return None


def page_of(key: str) -> str | None:
    """The address of the rail's item of this key."""
    return next(
        (address(item.url_name) for section in SECTIONS for item in section.items if item.key == key), None
    )


def sections(request: HttpRequest, caller: Caller | None) -> Iterator[dict[str, Any]]:
    """The rail for this request: sections with at least one item."""
    if caller is None:
        return
    here = _nearest(request.path)
    for section in SECTIONS:
        items = [shown for item in section.items if (shown := _shown(item, caller, here))]
        if items:
            yield {"label": section.label, "items": items}


def _nearest(path: str) -> str | None:
    """The key of the item whose address is the longest beginning of this path."""
    found = [
        (url, item.key) for section in SECTIONS for item in section.items if (url := address(item.url_name))
    ]
    fitting = [(len(url), key) for url, key in found if path == url or (url != "/" and path.startswith(url))]
    return max(fitting)[1] if fitting else None


def _shown(item: Item, caller: Caller, here: str | None) -> Shown | None:
    url = address(item.url_name)
    if url is None or not caller.role.covers(item.min_role):
        return None
    count = item.count(caller.team) if item.count else None
    return Shown(item.key, item.label, url, item.key == here, item.shortcut, count)
