"""Problems name fields as people do, however deep the framework nests its messages."""

from __future__ import annotations

import json

import pytest
from django.test import Client
from rest_framework.exceptions import ErrorDetail, ValidationError

from common.problems import exception_handler

WORDS = ErrorDetail("May not be blank.", code="blank")
SHAPES = [
    ({"name": ["Too long.", "Too odd."]}, {"name": "Too long. Too odd."}),
    (["Not now."], {"non_field_errors": "Not now."}),
    ({"domains": [{}, {"name_en": [WORDS], "code": [WORDS]}]},
     {"domains.1.name_en": "May not be blank.", "domains.1.code": "May not be blank."}),
    ({"scopes": {2: [WORDS]}}, {"scopes.2": "May not be blank."}),
    ({"plan": {"0": {"experts": {1: [WORDS]}}}}, {"plan.0.experts.1": "May not be blank."}),
    ({"plan": {"non_field_errors": ["The parts do not fit."]}}, {"plan": "The parts do not fit."}),
    ({"rows": [[WORDS], [WORDS]]}, {"rows.0": "May not be blank.", "rows.1": "May not be blank."}),
    ({"domains": {"non_field_errors": ["Expected a list of items."]}}, {"domains": "Expected a list of items."}),
]  # fmt: skip


@pytest.mark.parametrize(("detail", "wanted"), SHAPES)
def test_nested_messages_become_one_line_a_field(detail, wanted) -> None:
    reply = exception_handler(ValidationError(detail), {})
    assert reply is not None
    assert {one["field"]: one["message"] for one in reply.data["errors"]} == wanted


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("domain-maps", {"name": "m", "num_experts": 8, "domains": [{"code": "A", "name_en": "", "name_zh": "", "experts": []}]}, "domains.0.name_en"),
        ("tokens", {"name": "t", "scopes": ["god"]}, "scopes.0"),
    ],
)  # fmt: skip
def test_no_python_reaches_a_program(people, path, body, field) -> None:
    reply = Client().post(
        f"/api/v1/{path}/", json.dumps(body), content_type="application/json",
        headers=people.bearer("owner", "read", "write", "admin"),
    )  # fmt: skip
    assert reply.status_code == 400, reply.content
    assert field in {one["field"] for one in reply.json()["errors"]}, reply.content
    assert b"ErrorDetail" not in reply.content


def test_a_cursor_of_somebody_else_is_named(people) -> None:
    reply = Client().get("/api/v1/tokens/?cursor=zzz", headers=people.bearer("owner", "read", "admin"))
    assert (reply.status_code, reply.json()["code"]) == (422, "bad_cursor")
    assert [one["field"] for one in reply.json()["errors"]] == ["cursor"]
