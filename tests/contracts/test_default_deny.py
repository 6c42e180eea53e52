"""Every HTTP route × method, as a stranger: refused, unless it stands on a short list."""

from __future__ import annotations

import pytest

from tests.contracts.routes import METHODS, Route, routes, socket_paths
from tests.contracts.walk import WHO, Walk, walk

__all__ = ["walk"]
pytestmark = pytest.mark.django_db

PUBLIC = {
    "accounts:signin": "to sign in",
    "accounts:setup": "the first admin's one-time link; a wrong one is a 404",
    "accounts:join": "an invitation's one-time link; a wrong one is a 404",
    "set_language": "the language switch, in a cookie",
    "gateway:healthz": "liveness for a supervisor",
    "gateway:readyz": "readiness for a load balancer, without details",
}
ROUTES = routes()
ADMIN = [route for route in ROUTES if route.path.startswith("/admin/")]


@pytest.mark.parametrize("route", [r for r in ROUTES if r.name not in PUBLIC], ids=lambda route: route.path)
def test_a_stranger_is_refused(walk: Walk, route: Route) -> None:
    steps = [walk.step("anonymous", method, route.path) for method in METHODS]
    let_in = [f"{one.method} {one.status}" for one in steps if not one.is_refusal]
    assert not let_in, f"{route.path} ({route.name}) lets strangers in by {', '.join(let_in)}"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_stranger_changes_nothing_by_a_public_route(walk: Walk, name: str) -> None:
    for route in ROUTES:
        if route.name == name:
            steps, after = walk.changes("anonymous", METHODS, route.path)
            assert not [one for one in steps if one.status >= 500 and name != "gateway:readyz"]
            assert after == walk.before


@pytest.mark.parametrize("route", ADMIN, ids=lambda route: route.path)
def test_the_admin_is_closed_to_every_member(walk: Walk, route: Route) -> None:
    steps = [(who, walk.step(who, method, route.path)) for who in WHO[1:] for method in METHODS]
    assert not [f"{who} {one.method} {one.status}" for who, one in steps if one.status != 403]


@pytest.mark.parametrize("path", socket_paths())
def test_a_sockets_path_is_no_page(walk: Walk, path: str) -> None:
    assert {walk.step(who, method, path).status for who in WHO for method in METHODS} == {404}


def test_the_public_list_is_short_and_true() -> None:
    named = {route.name for route in ROUTES}
    assert set(PUBLIC) <= named
    assert len(PUBLIC) <= 6
    for route in ROUTES:
        access = getattr(route.view, "access", None) or getattr(
            getattr(route.view, "view_class", None), "access", None
        )
        if access is not None and access.public:
            assert route.name in PUBLIC, f"{route.name} is public and not on the list"


def test_the_walk_sees_the_rooms() -> None:
    paths = {route.path for route in ROUTES}
    assert len(ROUTES) > 100
    assert "/" in paths
    assert "/tokens/4242/revoke/" in paths
    assert "/api/v1/tokens/4242/" in paths
    assert "/admin/accounts/user/4242/change/" in paths
    assert "/ws/jobs/4242/" in socket_paths()
