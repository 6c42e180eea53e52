"""Every route × method with the house's things, as an outsider, a viewer and the owner."""

from __future__ import annotations

import pytest

from accounts.access import Role
from tests.contracts.house import MARK
from tests.contracts.routes import METHODS, Route, routes
from tests.contracts.walk import Walk, walk

__all__ = ["walk"]
pytestmark = pytest.mark.django_db

# Django's admin is closed to all three (test_default_deny).
ROUTES = [route for route in routes() if not route.path.startswith("/admin/")]
SAFE = ("GET", "HEAD", "OPTIONS")
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
# Each call makes thousands of rows.
TOO_DEAR = {("POST", "/api/v1/corpora/samples/")}
LINKS = {"accounts:setup": "closed by its one-time link, to the owner too"}
# They grant reading alone, so another method is refused before it is found to be unknown.
READ_ONLY = {"telemetry:metrics", "api-schema", "me", "deployment-routing", "audit-list"}

# What a viewer may post: nothing here changes what the team owns.
VIEWER_MAY = {
    "accounts:signin": "a page of its own",
    "accounts:signout": "their own session",
    "accounts:team_switch": "their own session",
    "accounts:setup": "closed by its one-time link",
    "accounts:join": "closed by its one-time link",
    "accounts:tokens": "tokens of at most their own rights (the form is empty here, so nothing is made)",
    "set_language": "a cookie",
    "layout-preview": "computes, saves nothing",
    "layouts:preview": "computes, saves nothing",
    "routing:preview": "computes, saves nothing",
}
# What a viewer may not even see.
ADMINS_ALONE = {
    "accounts:audit", "accounts:member_role", "accounts:invitation_revoke", "token-list", "token-detail",
    "invitation-list", "invitation-detail", "audit-list",
}  # fmt: skip


def told(route: Route, steps: list[str]) -> str:
    return f"{route.path} ({route.name}): {', '.join(steps)}"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_an_outsider_gets_nothing_and_changes_nothing(walk: Walk, route: Route) -> None:
    methods = tuple(method for method in METHODS if (method, route.path) not in TOO_DEAR)
    steps, (things, _counts) = walk.changes("outsider", methods, route.path)
    for step in steps:
        where = told(route, [f"{step.method} {step.status}"])
        assert step.status < 500 or route.name == "gateway:readyz", where
        assert MARK.encode() not in step.body.lower(), where
        # OPTIONS describes the endpoint, never the thing
        assert not (route.takes_arguments and step.succeeded and step.method != "OPTIONS"), where
    assert things == walk.before[0]


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if r.name not in VIEWER_MAY], ids=lambda route: route.path
)
def test_a_viewer_changes_nothing(walk: Walk, route: Route) -> None:
    steps, after = walk.changes("teammate", UNSAFE, route.path)
    for step in steps:
        where = told(route, [f"{step.method} {step.status}"])
        assert step.status < 500 or route.name == "gateway:readyz", where
        assert step.status >= 400 or not route.path.startswith("/api/"), where
    assert after == walk.before


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_viewer_sees_what_is_not_for_admins_alone(walk: Walk, route: Route) -> None:
    steps = [walk.step("teammate", method, route.path) for method in SAFE]
    assert not [one for one in steps if one.status >= 500 and route.name != "gateway:readyz"]
    refused = {one.status == 403 for one in steps}
    assert refused == {route.read_role not in (None, Role.VIEWER)}, told(
        route, [str(one.status) for one in steps]
    )


def test_the_list_of_what_is_for_admins_alone_is_true() -> None:
    assert {route.name for route in ROUTES if route.read_role == Role.ADMIN} == ADMINS_ALONE


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_the_owner_is_let_in_everywhere_without_an_error(walk: Walk, route: Route) -> None:
    for method in METHODS:
        if (method, route.path) not in TOO_DEAR:
            step = walk.step("owner", method, route.path)
            where = told(route, [f"{step.method} {step.status}"])
            assert step.status < 500 or route.name == "gateway:readyz", where
            reads_only = route.name in READ_ONLY and method not in SAFE
            assert step.status not in (401, 403) or route.name in LINKS or reads_only, where
