"""However a stream ends, the engine stops working on it, the slot is free and the books are right."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import ApiToken
from deployments.models import Replica
from gateway.models import Quota, Reservation, Usage
from tests.apps.deployments.stack import ready_replicas, until
from tests.apps.gateway.served import Instance, web_process
from tests.moe_core.engine.model_dirs import tiny_model
from workers.engine_http import get_json

pytestmark = pytest.mark.django_db
MODEL = "tiny"
CHAT = "/v1/chat/completions"
# At temperature 0 the tiny model goes round in circles, so that an answer is as long as it may be: with a context of
# 65,536 tokens it takes minutes, and no test depends on how quick the engine is.
CONTEXT = 65_536
LONG = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60_000, "temperature": 0}
ABORT_S = 1.0


@pytest.fixture(scope="module")
def served(instance: Instance) -> Instance:
    instance.serve(MODEL, model=tiny_model(max_position_embeddings=CONTEXT), kv_tokens=4 * CONTEXT)
    return instance


@pytest.fixture(autouse=True)
def idle(served: Instance) -> Iterator[None]:
    until(lambda: load(served) == (0, 0))
    yield


def replica(served: Instance) -> Replica:
    (found,) = until(lambda: ready_replicas(served.deployments[MODEL]))
    return found


def load(served: Instance) -> tuple[int, int]:
    """What the engine itself says: running and waiting."""
    health = get_json(Path(replica(served).address), "/health", 5) or {}
    return health.get("running", -1), health.get("waiting", -1)


class Stream:
    """A stream read by hand, so that it can be left at any moment."""

    def __init__(self, port: int, key: str, **change: Any) -> None:
        self.link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps(LONG | {"stream": True} | change)
        self.link.request(
            "POST", CHAT, body, {"authorization": f"Bearer {key}", "content-type": "application/json"}
        )
        self.reply = self.link.getresponse()
        self.request_id = self.reply.headers["x-request-id"]

    def event(self) -> Any:
        """The next event; None at the end of the connection."""
        while line := self.reply.readline():
            if line.startswith(b"data: "):
                data = line[6:].strip()
                return "[DONE]" if data == b"[DONE]" else json.loads(data)
        return None

    def events(self) -> list[Any]:
        found = list(iter(self.event, None))
        self.reply.close()
        self.link.close()
        return found

    def leave(self) -> None:
        """Close the socket without a word."""
        assert self.link.sock is not None or self.reply.fp is not None
        raw = self.reply.fp.raw._sock if self.link.sock is None else self.link.sock
        raw.shutdown(socket.SHUT_RDWR)
        self.reply.close()
        self.link.close()


def limit(served: Instance, **columns: Any) -> tuple[str, ApiToken]:
    """A key with limits of its own."""
    key = served.key()
    token = ApiToken.objects.latest("pk")
    ApiToken.objects.filter(pk=token.pk).update(**columns)
    return key, token


def test_a_client_that_goes_away_aborts_its_sequence_within_a_second(served):
    key = served.key()
    for _ in range(5):
        stream = Stream(served.web.port, key)
        assert stream.event()["choices"][0]["delta"]["role"] == "assistant"
        assert stream.event()["choices"][0]["delta"]["content"]
        until(lambda: load(served) == (1, 0))
        stream.leave()
        left_at = time.monotonic()
        until(lambda: load(served) == (0, 0))
        assert time.monotonic() - left_at < ABORT_S
    rows = until(lambda: Usage.objects.filter(request_id=stream.request_id))
    assert rows[0].finish_reason == "cancelled"
    assert 0 < rows[0].completion_tokens < LONG["max_tokens"]


def test_one_that_goes_before_its_whole_answer_aborts_it_too(served):
    link = socket.create_connection(("127.0.0.1", served.web.port))
    body = json.dumps(LONG).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key()}\r\ncontent-length: {len(body)}\r\n\r\n"
    link.sendall(head.encode() + body)
    until(lambda: load(served) == (1, 0))
    link.close()
    left_at = time.monotonic()
    until(lambda: load(served) == (0, 0))
    assert time.monotonic() - left_at < ABORT_S


def test_a_key_runs_no_more_requests_at_once_than_it_may(served):
    key, _token = limit(served, max_concurrent=1)
    stream = Stream(served.web.port, key)
    stream.event()
    status, headers, body = served.ask("POST", CHAT, LONG, key=key)
    assert (status, body["error"]["code"], headers["retry-after"]) == (429, "concurrency_limit", "1")
    stream.leave()
    until(lambda: served.ask("POST", CHAT, LONG | {"max_tokens": 1}, key=key)[0] == 200, patience_s=5)


def test_a_monthly_limit_is_never_passed_however_many_ask_at_once(served):
    ask = LONG | {"max_tokens": 4}
    price = served.ask("POST", CHAT, ask, key=served.key())[2]["usage"]["total_tokens"]
    key, token = limit(served, monthly_token_limit=3 * price, max_concurrent=50)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _n: served.ask("POST", CHAT, ask, key=key), range(16)))
    assert sorted(status for status, _headers, _body in replies) == [200] * 3 + [429] * 13
    refused = next(reply for reply in replies if reply[0] == 429)
    assert refused[2]["error"]["code"] == "insufficient_quota"
    assert int(refused[1]["retry-after"]) > 0
    # The books are closed after the answer has gone out.
    quota = until(lambda: Quota.objects.filter(token=token, reserved=0).first())
    assert quota.used == 3 * price
    assert not Reservation.objects.filter(quota=quota).exists()


def test_a_limited_stream_that_is_left_pays_for_what_it_got(served):
    key, token = limit(served, monthly_token_limit=100_000)
    stream = Stream(served.web.port, key)
    for _ in range(5):
        stream.event()
    assert Quota.objects.get(token=token).reserved > LONG["max_tokens"]
    stream.leave()
    quota = until(lambda: Quota.objects.filter(token=token, reserved=0).first())
    assert 0 < quota.used < LONG["max_tokens"]


def test_a_key_revoked_in_the_middle_ends_its_stream_within_five_seconds(served):
    key, token = limit(served)
    # Slow readers keep a stream alive as long as they like: this one only reads when the key is gone.
    stream = Stream(served.web.port, key)
    stream.event()
    ApiToken.objects.filter(pk=token.pk).update(revoked_at=timezone.now())
    revoked_at = time.monotonic()
    more = [Stream(served.web.port, served.key(), max_tokens=60_000) for _ in range(6)]
    last = stream.events()[-1]
    assert time.monotonic() - revoked_at < 5
    if last != "[DONE]":
        assert last["error"]["type"] == "authentication_error"
    for other in more:
        other.leave()


@pytest.mark.faults
def test_an_engine_killed_in_the_middle_ends_each_stream_with_an_error_and_comes_back(served):
    key, _token = limit(served, max_concurrent=50)
    before = replica(served)
    streams = [Stream(served.web.port, key) for _ in range(6)]
    for stream in streams:
        assert stream.event()
    killed_at = time.monotonic()
    os.kill(before.pid, signal.SIGKILL)
    for stream in streams:
        last = stream.events()[-1]
        assert last["error"]["type"] == "server_error", last
        assert last["error"]["code"] == "engine_lost"
    assert time.monotonic() - killed_at < 2
    status, headers, body = served.ask("POST", CHAT, LONG | {"max_tokens": 1}, key=key)
    assert status in (200, 503)
    if status == 503:
        assert int(headers["retry-after"]) >= 1
        assert body["error"]["type"] == "server_error"
    until(lambda: served.ask("POST", CHAT, LONG | {"max_tokens": 1}, key=key)[0] == 200)
    after = replica(served)
    assert (after.pk, after.restarts) == (before.pk, before.restarts + 1)
    assert after.epoch > before.epoch


@pytest.mark.faults
def test_a_web_process_that_is_asked_to_stop_finishes_its_streams(served):
    with web_process(served.folder, drain_s=20) as web:
        key, _token = limit(served, max_concurrent=50)
        streams = [Stream(web.port, key, max_tokens=300) for _ in range(8)]
        for stream in streams:
            stream.event()
        web.process.terminate()
        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(lambda one: one.events()[-1], streams))
        assert ends == ["[DONE]"] * 8
        # uvicorn ends in order, then passes the signal on.
        assert web.process.wait(30) in (0, -signal.SIGTERM)
    used = Usage.objects.filter(request_id__in=[stream.request_id for stream in streams])
    assert used.count() == 8


@pytest.mark.faults
def test_a_version_is_switched_under_load_without_a_failed_request(served):
    key, _token = limit(served, max_concurrent=50)
    statuses: list[tuple[int, Any]] = []
    versions: list[set[str]] = []
    stopping = threading.Event()

    def keep_asking() -> None:
        while not stopping.is_set():
            stream = Stream(served.web.port, key, max_tokens=20)
            events = stream.events()
            statuses.append((stream.reply.status, events[-1]))
            versions.append(
                {one["system_fingerprint"] for one in events if isinstance(one, dict) and "id" in one}
            )

    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        before = replica(served)
        served.update(MODEL)
        until(
            lambda: [
                one for one in ready_replicas(served.deployments[MODEL]) if one.revision > before.revision
            ]
        )
        until(lambda: Replica.objects.get(pk=before.pk).state == "stopped")
    finally:
        stopping.set()
        for asker in askers:
            asker.join()
    assert {status for status, _last in statuses} == {200}
    assert {last for _status, last in statuses} == {"[DONE]"}
    assert all(len(found) == 1 for found in versions), "a stream mixed two versions"
    assert len(set.union(*versions)) == 2


def test_more_than_the_engine_takes_is_refused_at_once_and_the_rest_is_answered(served):
    narrow = tiny_model(max_position_embeddings=CONTEXT)
    served.serve(
        "narrow", model=narrow, kv_tokens=CONTEXT, max_sequences=1, max_waiting=1, max_batch_tokens=64
    )
    key, _token = limit(served, max_concurrent=50)
    (engine,) = ready_replicas(served.deployments["narrow"])

    def work() -> tuple[int, int]:
        health = get_json(Path(engine.address), "/health", 5) or {}
        return health.get("running", -1), health.get("waiting", -1)

    running = Stream(served.web.port, key, model="narrow")
    running.event()
    ask = LONG | {"model": "narrow", "max_tokens": 8}
    with ThreadPoolExecutor(1) as pool:
        # It waits for the stream above, which goes on until it is left.
        waiting = pool.submit(lambda: served.ask("POST", CHAT, ask, key=key))
        until(lambda: work() == (1, 1))
        status, headers, body = served.ask("POST", CHAT, ask, key=key)
        assert (status, body["error"]["code"]) == (429, "engine_busy")
        assert int(headers["retry-after"]) >= 1
        until(lambda: Usage.objects.filter(request_id=headers["x-request-id"], finish_reason="busy").exists())
        running.leave()
        assert waiting.result()[0] == 200
