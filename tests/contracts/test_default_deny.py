"""Every route × method, as a stranger: refused, unless it stands on a short list."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.contracts.routes import METHODS, Route, routes

PUBLIC = {
    "accounts:signin": "to sign in",
    "accounts:setup": "the first admin's one-time link; a wrong one is a 404",
    "set_language": "the language switch, in a cookie",
    "gateway:healthz": "liveness for a supervisor",
    "gateway:readyz": "readiness for a load balancer, without details",
}
ROUTES = routes()


def refused(route: Route, method: str, client: Client) -> bool:
    reply = client.generic(method, route.path, headers={"accept": "*/*"})
    to_signin = reply.status_code == 302 and reply.headers["Location"].startswith("/signin/")
    return to_signin or reply.status_code in (401, 403)


@pytest.mark.django_db
@pytest.mark.parametrize("route", [r for r in ROUTES if r.name not in PUBLIC], ids=lambda route: route.name)
def test_a_stranger_is_refused(route: Route) -> None:
    client = Client()
    let_in = [method for method in METHODS if not refused(route, method, client)]
    assert not let_in, f"{route.path} ({route.name}) lets strangers in by {', '.join(let_in)}"


@pytest.mark.django_db
def test_the_public_list_is_short_and_true() -> None:
    named = {route.name for route in ROUTES}
    assert set(PUBLIC) & named >= {"accounts:signin", "accounts:setup", "set_language"}
    assert len(PUBLIC) <= 6
    for route in ROUTES:
        access = getattr(route.view, "access", None) or getattr(
            getattr(route.view, "view_class", None), "access", None
        )
        if access is not None and access.public:
            assert route.name in PUBLIC, f"{route.name} is public and not on the list"


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/admin/", "/admin/accounts/user/", "/admin/registry/", "/admin/nothing/"])
def test_the_admin_is_closed_to_strangers_and_to_members(people, path: str) -> None:
    assert Client().get(path).status_code == 302
    assert people.client("owner").get(path).status_code == 403


def test_the_walk_sees_the_rooms() -> None:
    paths = {route.path for route in ROUTES}
    assert len(ROUTES) > 10
    assert "/" in paths
    assert "/tokens/4242/revoke/" in paths
    assert "/api/v1/tokens/4242/" in paths
