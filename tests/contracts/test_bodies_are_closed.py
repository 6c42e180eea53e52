"""What reads a body of the REST API refuses every field that it does not know, by name, however deep it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from api.schema import described
from tests.contracts.house import NUMBER, furnish
from tests.people import People

STRANGE = "not_a_field_of_ours"
MULTIPART = "multipart/form-data"
Operation = tuple[str, str]


def operations(media: str) -> list[Operation]:
    """Return every operation that reads a body of this type."""
    return sorted(
        (path, method)
        for path, methods in described()["paths"].items()
        for method, drawn in methods.items()
        if media in drawn.get("requestBody", {}).get("content", {})
    )


def bodyless() -> list[Operation]:
    """Return every operation that acts and reads no body."""
    return sorted(
        (path, method)
        for path, methods in described()["paths"].items()
        for method, drawn in methods.items()
        if method in ("post", "put", "patch") and "requestBody" not in drawn
    )


@pytest.fixture
def api(people: People) -> Client:
    furnish(people.owner)
    return Client(headers=people.bearer("owner", "read", "write", "deploy", "infer", "admin"))


def address(path: str) -> str:
    """Return a path with its arguments filled in by what the house holds."""
    return re.sub(r"\{(\w+)\}", lambda found: "champion" if found[1] == "name" else str(NUMBER), path)


def open_shapes(drawn: dict[str, Any], way: str) -> Iterator[str]:
    """Yield the way to each shape with fields of its own that takes others too."""
    if "$ref" in drawn:
        name = drawn["$ref"].rsplit("/", 1)[1]
        # Specifications of moe_core may hold one another; they are closed by their own base.
        if not name.endswith("Request"):
            return
        drawn = described()["components"]["schemas"][name]
    if "properties" in drawn and drawn.get("additionalProperties") is not False:
        yield way
    for field, inner in drawn.get("properties", {}).items():
        yield from open_shapes(inner, f"{way}.{field}")
    if "items" in drawn:
        yield from open_shapes(drawn["items"], f"{way}[]")
    for inner in (*drawn.get("allOf", ()), *drawn.get("oneOf", ()), *drawn.get("anyOf", ())):
        yield from open_shapes(inner, way)


def test_the_walk_meets_the_api() -> None:
    assert len(operations("application/json")) >= 20
    assert operations(MULTIPART) == [("/api/v1/corpora/{id}/files/", "post"), ("/api/v1/uploads/", "post")]
    assert len(bodyless()) >= 9


@pytest.mark.django_db
@pytest.mark.parametrize(("path", "method"), operations("application/json") + bodyless())
def test_an_unknown_field_is_refused_by_name(api: Client, path: str, method: str) -> None:
    reply = api.generic(method.upper(), address(path), f'{{"{STRANGE}": 1}}', "application/json")
    assert reply.status_code == 400, reply.content
    assert reply.json()["errors"] == [{"field": STRANGE, "message": "There is no such field."}]


@pytest.mark.django_db
@pytest.mark.parametrize(("path", "method"), operations("application/json") + bodyless())
def test_a_body_that_is_no_object_is_refused(api: Client, path: str, method: str) -> None:
    assert api.generic(method.upper(), address(path), "[]", "application/json").status_code == 400


@pytest.mark.django_db
@pytest.mark.parametrize(("path", "method"), bodyless())
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ("", {}),
        ("", {"CONTENT_TYPE": "application/json"}),
        ("", {"CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": "0"}),
        ("{}", {"CONTENT_TYPE": "application/json"}),
    ],
)
def test_an_action_without_a_body_takes_none_and_an_empty_one(
    api: Client, path: str, method: str, body: str, headers: dict[str, str]
) -> None:
    reply = api.generic(method.upper(), address(path), body, "", **headers)
    # What the house's things cannot do is another refusal (409, or 422 of what a job once asked); the request was taken.
    assert reply.status_code in (200, 201, 202, 409, 422), reply.content


@pytest.mark.django_db
@pytest.mark.parametrize(("path", "method"), operations(MULTIPART))
def test_a_form_with_an_unknown_field_is_refused_by_name(api: Client, path: str, method: str) -> None:
    file = SimpleUploadedFile("logs.csv", b"user,assistant\na,b\n")
    reply = api.post(address(path), {"file": file, STRANGE: "1"})
    assert reply.status_code == 400, reply.content
    assert reply.json()["errors"] == [{"field": STRANGE, "message": "There is no such field."}]


@pytest.mark.parametrize(("path", "method"), operations("application/json"))
def test_every_shape_of_a_body_is_drawn_closed(path: str, method: str) -> None:
    body = described()["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    assert not list(open_shapes(body, f"{method.upper()} {path}"))


@pytest.mark.django_db
def test_a_field_of_one_domain_is_refused_where_it_stands(api: Client) -> None:
    domain = {"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0], "prior_strength": 9}
    body = {"name": "Shop", "num_experts": 8, "domains": [domain]}
    reply = api.post("/api/v1/domain-maps/", body, "application/json")
    assert reply.status_code == 400
    assert reply.json()["errors"] == [
        {"field": "domains.0.prior_strength", "message": "There is no such field."}
    ]
