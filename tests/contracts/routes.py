"""Every HTTP route of the Django door, as the URLconf has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib.admindocs.views import simplify_regex
from django.urls import URLPattern, URLResolver, get_resolver

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
ARGUMENT = re.compile(r"<(?:(\w+):)?(\w+)>")
STAND_INS = {
    "int": "4242",
    "uuid": "00000000-0000-0000-0000-000000004242",
    "slug": "some-slug",
    "str": "4242",
}


@dataclass(frozen=True)
class Route:
    """One leaf of the URLconf: how it is named, and a path with its arguments filled in."""

    name: str
    path: str
    takes_arguments: bool
    view: Any


def routes() -> list[Route]:
    """Return every route, except those of Django's own admin (a gate of its own stands before them)."""
    return list(_walk(get_resolver().url_patterns, "/", ""))


def _walk(patterns: list[URLPattern | URLResolver], prefix: str, names: str) -> Iterator[Route]:
    for item in patterns:
        text = _readable(item)
        if isinstance(item, URLPattern):
            path = ARGUMENT.sub(lambda found: STAND_INS[found[1] or "str"], prefix + text)
            yield Route(f"{names}{item.name}", path, "<" in prefix + text, item.callback)
        elif item.namespace != "admin":
            yield from _walk(
                item.url_patterns, prefix + text, f"{names}{item.namespace}:" if item.namespace else names
            )


def _readable(item: URLPattern | URLResolver) -> str:
    text = str(item.pattern)
    return simplify_regex(text).lstrip("/") if text.startswith("^") else text
