"""What the doors refuse before any view runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

from accounts.access import Access
from accounts.middleware import TeamAndAccessMiddleware
from common.body_limit import BodyLimit


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Read the whole body and say how long it was, or that the client was cut off."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send({"type": "http.response.start", "status": 499, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def talk(
    headers: list[tuple[bytes, bytes]], chunks: list[bytes], path: str = "/x"
) -> tuple[int, bytes]:
    app = ApplicationCommunicator(BodyLimit(echo), {"type": "http", "path": path, "headers": headers})
    for number, chunk in enumerate(chunks):
        more = number + 1 < len(chunks)
        await app.send_input({"type": "http.request", "body": chunk, "more_body": more})
    start = await app.receive_output()
    body = await app.receive_output()
    return start["status"], body.get("body", b"")


@override_settings(MAX_BODY_BYTES=10)
@pytest.mark.parametrize(
    ("headers", "chunks", "status"),
    [
        ([(b"content-length", b"4")], [b"abcd"], 200),
        ([(b"content-length", b"11")], [b"x" * 11], 413),
        ([(b"content-length", b"-1")], [b""], 413),
        ([(b"content-length", b"4")], [b"x" * 8, b"x" * 8], 499),
        ([(b"transfer-encoding", b"chunked")], [b"{}"], 411),
    ],
)
async def test_a_body_is_counted_and_bounded(headers, chunks, status) -> None:
    got, body = await talk(headers, chunks)
    assert got == status
    if status in (411, 413):
        assert json.loads(body)["status"] == status


def gate(view: Any, user: Any) -> HttpResponse | None:
    request = RequestFactory().get("/somewhere/")
    request.user = user
    request.caller = None
    request.resolver_match = None
    return TeamAndAccessMiddleware(lambda _request: HttpResponse()).process_view(request, view, (), {})


def test_a_view_that_declares_nothing_is_refused_even_to_an_admin(people) -> None:
    def forgotten(request: Any) -> HttpResponse:
        raise AssertionError("must not run")

    refusal = gate(forgotten, people.owner.user)
    assert refusal is not None
    assert refusal.status_code == 403
    forgotten.access = Access(public=True)
    assert gate(forgotten, people.owner.user) is None


HOSTILE = {
    "deep": b"[" * 5000,
    "infinite": b'{"name": 1e999}',
    "surrogate": b'{"name": "\\ud800"}',
    "nul": b'{"name": "a\\u0000b"}',
    "twice": b'{"name": 1, "name": 2}',
    "nan": b'{"name": NaN}',
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_hostile_json_is_a_clean_400(people, kind) -> None:
    reply = people.client("owner").post("/api/v1/tokens/", HOSTILE[kind], content_type="application/json")
    assert reply.status_code == 400
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert "Traceback" not in reply.text


def test_every_answer_has_the_strict_policy_and_an_id(people) -> None:
    reply = people.client("owner").get("/tokens/")
    assert "unsafe" not in reply.headers["Content-Security-Policy"]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["X-Request-Id"]


def test_a_crafted_host_is_refused(people) -> None:
    reply = people.client("owner").get("/tokens/", headers={"host": "127.0.0.1/x?"})
    assert reply.status_code == 400
