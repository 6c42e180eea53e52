"""Whatever the schema allows, and much that it does not, is answered: never with a server error, always in JSON."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import schemathesis
from django.db import transaction
from django.http import StreamingHttpResponse
from django.test import Client
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from tests.contracts.house import NUMBER, furnish

EXAMPLES = 6
# Each call makes thousands of rows, whatever it is sent.
TOO_DEAR = {("/api/v1/corpora/samples/", "post")}
ANSWERS_IN_JSON = ("application/json", "application/problem+json")


def operations() -> list[tuple[str, str]]:
    described = SchemaGenerator().get_schema(request=None, public=True)["paths"]
    found = {(path, method) for path, methods in described.items() for method in methods}
    assert found >= TOO_DEAR
    return sorted(found - TOO_DEAR)


@pytest.fixture(scope="module")
def described() -> Any:
    plain = json.dumps(SchemaGenerator().get_schema(request=None, public=True), default=str)
    return schemathesis.openapi.from_dict(json.loads(plain))


@pytest.fixture
def api(people):
    """The owner of everything, by token; what an example changes is rolled back."""
    furnish(people.owner)
    return people.bearer("owner", "read", "write", "deploy", "infer", "admin")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), operations())
def test_no_generated_request_breaks_the_server(described, api, path, method):
    operation = described[path][method]
    cases = st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
    )

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases, number=st.sampled_from([NUMBER, NUMBER, 1, -1, 10**30]))
    def send(case: Any, number: int) -> None:
        with transaction.atomic():
            answer = call(case, number, api)
            transaction.set_rollback(True)
        told = f"{method.upper()} {path} {case.body!r} {case.query!r} -> {answer.status_code}"
        assert answer.status_code < 500, told
        if answer.status_code >= 400 and not isinstance(answer, StreamingHttpResponse):
            assert answer.headers["Content-Type"].split(";")[0] in ANSWERS_IN_JSON, told
            json.loads(answer.content)

    send()


def call(case: Any, number: int, headers: dict[str, str]) -> Any:
    """Send one case through Django's own client, in this transaction."""
    path = case.path
    for name, value in (case.path_parameters or {}).items():
        chosen = number if name == "id" or name.endswith("_id") else value
        path = path.replace("{" + name + "}", quote(str(chosen), safe=""))
    query = urlencode({key: str(value) for key, value in (case.query or {}).items()})
    body = b""
    if case.media_type == "application/json" and case.method.upper() not in ("GET", "DELETE"):
        body = json.dumps(case.body if type(case.body).__name__ != "NotSet" else {}, default=str).encode()
    return Client(raise_request_exception=False).generic(
        case.method.upper(), path, body, content_type=case.media_type or "application/json",
        headers=headers, QUERY_STRING=query,
    )  # fmt: skip
