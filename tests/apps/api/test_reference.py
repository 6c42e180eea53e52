"""The page of the API: whole, true to the schema, and made of our own files alone."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from accounts.access import Scope
from api.reference import Reference
from api.schema import described
from gateway.asgi import application as gateway


@pytest.fixture(scope="module")
def read() -> Reference:
    return Reference(described())


def test_every_operation_of_the_schema_is_shown_with_what_it_needs(read) -> None:
    shown = {(one.method, one.path) for part in read.parts() for one in part.operations}
    assert shown == {
        (method.upper(), path) for path, methods in described()["paths"].items() for method in methods
    }
    assert len(shown) > 60
    operations = [one for part in read.parts() for one in part.operations]
    assert not [one.path for one in operations if not one.role or one.scope not in Scope.values]
    needs = {(one.method, one.path): (one.scope, one.role) for one in operations}
    assert needs["POST", "/api/v1/deployments/"] == ("deploy", "Editor")
    assert needs["GET", "/api/v1/audit/"] == ("admin", "Admin")


def test_fields_carry_their_bounds_choices_and_defaults(read) -> None:
    (create,) = [one for part in read.parts() for one in part.operations if one.key == "tokens_create"]
    fields = {one.name: one for one in create.body}
    assert fields["name"].required
    assert "maxLength 80" in fields["name"].notes
    assert {"minimum 1", "maximum 3650", "default 90"} <= set(fields["days"].notes)
    assert "read | write | deploy | infer | admin" in fields["scopes"].notes
    assert (fields["scopes"].type, fields["scopes"].required) == ("string[]", True)
    assert [(one.status, one.type) for one in create.answers] == [(201, "TokenMade")]


def test_every_link_to_a_shape_leads_to_one(people) -> None:
    page = people.client("teammate").get("/api/").content.decode()
    links = set(re.findall(r'href="#(shape-\w+)"', page))
    assert len(links) > 20
    assert links <= set(re.findall(r'id="(shape-\w+)"', page))


def test_the_page_needs_nothing_that_its_policy_refuses(people) -> None:
    reply = people.client("teammate").get("/api/")
    assert reply.status_code == 200
    assert "script-src 'self'" in reply["Content-Security-Policy"]
    page = reply.content.decode()
    assert not re.findall(r"\son\w+=|style=|javascript:", page)
    assert not re.findall(r'(?:src|href)="(https?:[^"]*)"', page)
    for tag in re.findall(r"<script\b[^>]*>", page):
        assert 'src="/static/' in tag or "application/json" in tag


def test_the_models_door_is_shown_as_the_gateway_lists_it(people) -> None:
    page = people.client("teammate").get("/api/").content.decode()
    for path in gateway.routes:
        assert path in page


def test_the_page_is_for_people_of_a_team_and_stands_in_the_rail(people) -> None:
    reply = Client().get("/api/")
    assert (reply.status_code, reply["Location"]) == (302, "/signin/?next=%2Fapi%2F")
    assert 'href="/api/"' in people.client("teammate").get("/tokens/").content.decode()
    page = people.client("teammate").get("/api/", headers={"accept-language": "zh-hans"}).content.decode()
    assert "API 参考" in page
    assert "数据结构" in page


def test_the_schema_says_to_programs_what_each_operation_needs(people) -> None:
    reply = Client().get("/api/v1/schema/?format=json", headers=people.bearer("teammate", "read"))
    assert reply.json()["paths"]["/api/v1/tokens/"]["post"]["x-scope"] == "admin"
