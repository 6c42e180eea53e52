"""Every route × method with the house's things, as an outsider, a viewer and the owner."""

from __future__ import annotations

import pytest

from tests.contracts.house import contents, furnish, row_counts
from tests.contracts.routes import METHODS, Route, routes

pytestmark = pytest.mark.django_db
ROUTES = routes()
WITH_THINGS = [route for route in ROUTES if route.takes_arguments and route.name != "accounts:setup"]
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")

# What a viewer may post: nothing here changes what the team owns.
VIEWER_MAY = {
    "accounts:signin": "a page of its own",
    "accounts:signout": "their own session",
    "accounts:team_switch": "their own session",
    "accounts:setup": "closed by its one-time link",
    "accounts:tokens": "tokens of at most their own rights (the form is empty here, so nothing is made)",
    "set_language": "a cookie",
    "layout-preview": "computes, saves nothing",
    "layouts:preview": "computes, saves nothing",
    "routing:preview": "computes, saves nothing",
}


def succeeded(status: int) -> bool:
    return 200 <= status < 400


@pytest.mark.parametrize("route", WITH_THINGS, ids=lambda route: route.name)
def test_an_outsider_gets_nothing_and_changes_nothing(people, route: Route) -> None:
    things = furnish(people.owner)
    before = contents(things)
    client = people.client("outsider")
    got = {
        method: client.generic(method, route.path, "{}", "application/json").status_code for method in METHODS
    }
    got.pop("OPTIONS")  # describes the endpoint, never the thing
    assert not [f"{m} {s}" for m, s in got.items() if succeeded(s)], f"{route.path} ({route.name})"
    assert not [f"{m} {s}" for m, s in got.items() if s >= 500], f"{route.path} ({route.name})"
    assert contents(things) == before


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if r.name not in VIEWER_MAY], ids=lambda route: route.name
)
def test_a_viewer_changes_nothing(people, route: Route) -> None:
    things = furnish(people.owner)
    before, counts = contents(things), row_counts()
    client = people.client("teammate")
    for method in UNSAFE:
        status = client.generic(method, route.path, "{}", "application/json").status_code
        assert status < 500, f"{method} {route.path}"
        assert status >= 400 or not route.path.startswith("/api/"), f"{method} {route.path} ({route.name})"
    assert (contents(things), row_counts()) == (before, counts)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_the_owner_sees_every_page_without_an_error(people, route: Route) -> None:
    furnish(people.owner)
    reply = people.client("owner").get(route.path, headers={"accept": "*/*"})
    assert reply.status_code < 500
    if route.name != "accounts:setup":
        assert reply.status_code != 403, f"the owner is refused at {route.path}"
