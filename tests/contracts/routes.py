"""Every address of the three doors, as the code itself lists them: the URLconf with Django's admin, the gateway's table
of routes, and the patterns of the sockets. Nothing is written down by hand, so a new address is walked at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib.admindocs.views import simplify_regex
from django.urls import URLPattern, URLResolver, get_resolver

from accounts.access import Role
from config.asgi import GATEWAY_PREFIXES
from config.sockets import websocket_urlpatterns
from gateway.asgi import MODEL_PREFIX
from gateway.asgi import application as gateway
from tests.contracts.house import MARK, NUMBER

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
ARGUMENT = re.compile(r"<(?:(\w+):)?(\w+)>")
STAND_INS = {
    "int": "4242",
    "uuid": "00000000-0000-0000-0000-000000004242",
    "slug": "some-slug",
    "str": "4242",
    "path": "4242",
}
NAMED_STAND_INS = {"app_label": "accounts"}
NUMBER_IN_PATTERN = re.compile(r"\(\?P<\w+>\\d[^)]*\)")


@dataclass(frozen=True)
class Route:
    """One leaf of the URLconf: how it is named, and a path with its arguments filled in."""

    name: str
    path: str
    takes_arguments: bool
    view: Any


    @property
    def read_role(self) -> Role | None:
        """The role that its view declares for reading; None when every signed-in person may."""
        if (rest := getattr(self.view, "cls", None)) is not None:
            return rest.grants.read.role if rest.grants.read else None
        access = getattr(self.view, "access", None) or getattr(
            getattr(self.view, "view_class", None), "access", None
        )
        return access.role if access else None


def routes() -> list[Route]:
    """Return every route of the URLconf, Django's admin among them."""
    return list(_walk(get_resolver().url_patterns, "/", ""))


def gateway_addresses() -> dict[str, tuple[str, ...]]:
    """Return each address of the raw door with the methods that it takes; unknown ones of each mount take none."""
    listed = {path: tuple(methods) for path, methods in gateway.routes.items()}
    unknown = {f"{prefix}nothing-here": () for prefix in GATEWAY_PREFIXES}
    return {**listed, f"{MODEL_PREFIX}{MARK}-prod": ("GET", "HEAD"), **unknown}


def socket_paths() -> list[str]:
    """Return every socket's path with its number filled in."""
    patterns = [str(each.pattern).strip("^$") for each in websocket_urlpatterns]
    return ["/" + NUMBER_IN_PATTERN.sub(str(NUMBER), pattern) for pattern in patterns]


def _walk(patterns: list[URLPattern | URLResolver], prefix: str, names: str) -> Iterator[Route]:
    for item in patterns:
        text = _readable(item)
        if isinstance(item, URLPattern):
            path = ARGUMENT.sub(_stand_in, prefix + text)
            yield Route(f"{names}{item.name}", path, "<" in prefix + text, item.callback)
        else:
            yield from _walk(
                item.url_patterns, prefix + text, f"{names}{item.namespace}:" if item.namespace else names
            )


def _stand_in(found: re.Match[str]) -> str:
    return NAMED_STAND_INS.get(found[2]) or STAND_INS[found[1] or "str"]


def _readable(item: URLPattern | URLResolver) -> str:
    text = str(item.pattern)
    return simplify_regex(text).lstrip("/") if text.startswith("^") else text
