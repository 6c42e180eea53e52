"""Every address of the REST API takes the query parameters that its schema draws, and refuses every other by name."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from django.test import Client
from rest_framework.views import APIView

from api.schema import described
from common.closed_requests import ClosedRequest
from tests.contracts.house import NUMBER, furnish
from tests.contracts.routes import routes
from tests.contracts.test_bodies_are_closed import Operation, address
from tests.people import People

STRANGE = "not_a_parameter_of_ours"
WORDS = {"window": "1h", "side": "train", "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}
# Chooses the form of any answer.
ALWAYS = {"format": "json"}


def operations() -> list[Operation]:
    return sorted((path, method) for path, methods in described()["paths"].items() for method in methods)


def drawn(path: str, method: str) -> dict[str, dict[str, Any]]:
    """Return the query parameters of an operation as the schema has them, by name."""
    parameters = described()["paths"][path][method].get("parameters", ())
    return {one["name"]: one["schema"] for one in parameters if one["in"] == "query"}


def lists() -> list[str]:
    return [path for path, method in operations() if method == "get" and "limit" in drawn(path, method)]


@pytest.fixture
def api(people: People) -> Client:
    furnish(people.owner)
    return Client(headers=people.bearer("owner", "read", "write", "deploy", "infer", "admin"))


def test_the_walk_meets_the_api() -> None:
    assert len(operations()) >= 60
    assert len(lists()) >= 12
    assert {"/api/v1/jobs/", "/api/v1/corpora/{id}/files/{file_id}/refusals/"} <= set(lists())


@pytest.mark.django_db
@pytest.mark.parametrize(("path", "method"), operations())
def test_an_unknown_parameter_is_refused_with_those_that_the_schema_draws(
    api: Client, path: str, method: str
) -> None:
    reply = api.generic(method.upper(), f"{address(path)}?{STRANGE}=1")
    assert reply.status_code == 400, reply.content
    problem = reply.json()
    assert problem["code"] == "unknown_parameter"
    assert problem["errors"] == [{"field": STRANGE, "message": "There is no such query parameter."}]
    known = ", ".join(sorted(drawn(path, method))) or "none"
    assert problem["detail"] == f"This address has no query parameter “{STRANGE}”; it takes {known}."


@pytest.mark.django_db
@pytest.mark.parametrize("path", sorted({path for path, method in operations() if method == "get"}))
def test_what_the_schema_draws_is_taken(api: Client, path: str) -> None:
    asked = {name: value(name, schema) for name, schema in drawn(path, "get").items() if name != "cursor"}
    reply = api.get(f"{address(path)}?{urlencode(asked | ALWAYS)}")
    assert reply.status_code in (200, 404), b"" if reply.streaming else reply.content


def value(name: str, schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return str(schema["enum"][0])
    return WORDS.get(name) or (str(NUMBER) if schema["type"] == "integer" and name != "limit" else "20")


@pytest.mark.django_db
@pytest.mark.parametrize("path", lists())
def test_a_misspelt_filter_of_a_list_is_told(api: Client, path: str) -> None:
    refused = api.get(f"{address(path)}?stat=failed&limit=2")
    assert refused.status_code == 400
    assert [one["field"] for one in refused.json()["errors"]] == ["stat"]
    # Whoever may not read is told that first.
    assert Client().get(f"{address(path)}?stat=failed").status_code == 401


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["²", "-1", "1e3", "x"])
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/v1/versions/", "model"),
        (f"/api/v1/deployments/{NUMBER}/routing/", "version"),
        (f"/api/v1/deployments/{NUMBER}/routing/", "window"),
        (f"/api/v1/jobs/{NUMBER}/events/", "after"),
    ],
)
def test_a_value_that_is_no_number_is_refused_by_name(api: Client, path: str, name: str, text: str) -> None:
    reply = api.get(f"{path}?{urlencode({name: text})}")
    assert reply.status_code == 422, reply.content
    assert [one["field"] for one in reply.json()["errors"]] == [name]


def test_every_view_of_the_api_closes_its_requests() -> None:
    views = {route.path: cls for route in routes() if (cls := getattr(route.view, "cls", None))}
    rest = {path: cls for path, cls in views.items() if issubclass(cls, APIView)}
    assert len(rest) >= 30
    assert [path for path, cls in rest.items() if not issubclass(cls, ClosedRequest)] == []


@pytest.mark.django_db
def test_the_refusal_speaks_the_callers_language(api: Client) -> None:
    reply = api.get("/api/v1/jobs/?stat=failed&sort=name", headers={"accept-language": "zh-hans"})
    assert reply.json()["detail"] == "此地址没有查询参数“sort”、“stat”；可用的有：cursor、kind、limit、state。"
