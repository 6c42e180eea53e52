"""The engine over its socket: streams, refusals, cancellation, and what it says of itself."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

import moe_core
from moe_core.engine.http_errors import errors_as_json
from tests.moe_core.engine.http_engine import answer_of, running_engine
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir

DOMAINS = [
    {"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0]},
    {"code": "copy", "name_en": "Copy", "name_zh": "文案", "experts": [1, 2]},
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_model_dir(path, tiny_model())
    return path


@pytest.fixture
async def engine(model_dir, tmp_path):
    async with running_engine(
        model_dir, tmp_path, version="v1", epoch=7, domains=DOMAINS, max_waiting=50
    ) as client:
        yield client


async def test_a_stream_begins_with_start_and_ends_with_done(engine, model_dir) -> None:
    lines = await engine.generate(prompt="hello", max_tokens=6)
    assert lines[0] == {"type": "start", "prompt_tokens": 5, "reused_tokens": 0, "version": "v1", "epoch": 7}
    assert lines[-1]["type"] == "done"
    assert lines[-1]["usage"]["prompt_tokens"] == 5
    assert set(lines[-1]["timing"]) == {"queue_ms", "first_token_ms", "total_ms"}
    _, tokens = answer_of(lines)
    assert tokens == moe_core.load(model_dir).generate(list(b"hello"), 6)
    assert lines[-1]["usage"]["completion_tokens"] == len(tokens)


async def test_messages_are_formatted_by_the_models_own_chat_format(engine) -> None:
    status, body = await engine.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
    assert status == 200
    assert body["ids"] == [257, *b"user\nhi", 258, *b"\n", 257, *b"assistant\n"]
    lines = await engine.generate(messages=[{"role": "user", "content": "hi"}], max_tokens=2)
    assert lines[0]["prompt_tokens"] == len(body["ids"])


async def test_the_same_seed_gives_the_same_answer_in_any_company(engine) -> None:
    body = {"prompt": "seed", "max_tokens": 12, "temperature": 1.5, "top_p": 0.9, "seed": 42}
    alone = answer_of(await engine.generate(**body))
    crowd = await asyncio.gather(
        *(engine.generate(**body | {"prompt": f"other {n}", "seed": n}) for n in range(6)),
        engine.generate(**body),
    )
    assert answer_of(crowd[-1]) == alone
    assert len({answer_of(lines)[0] for lines in crowd}) > 3


async def test_logprobs_come_with_every_token(engine) -> None:
    lines = await engine.generate(prompt="abc", max_tokens=4, logprobs=2, temperature=1.0, seed=1)
    entries = [entry for line in lines if line["type"] == "delta" for entry in line["logprobs"]]
    assert [entry["token_id"] for entry in entries] == answer_of(lines)[1]
    for entry in entries:
        assert len(entry["top"]) == 2
        assert entry["top"][0]["logprob"] >= max(entry["logprob"], entry["top"][1]["logprob"])


async def test_routed_experts_cover_every_computed_token(engine) -> None:
    lines = await engine.generate(prompt="x" * 40, max_tokens=5, routed_experts=True)
    record = base64.b64decode(lines[-1]["routed_experts"])
    assert len(record) == 4 * (40 + len(answer_of(lines)[1]) - 1) * 3 * 2
    later = await engine.generate(
        prompt="x" * 40, max_tokens=5, routed_experts=True, routed_experts_start_len=40
    )
    assert base64.b64decode(later[-1]["routed_experts"]) == record[4 * 40 * 3 * 2 :]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"prompt": "a", "epoch": 6}, 409, "stale_epoch", None),
        ({"prompt": "a", "domain": "none-such"}, 400, "unknown_domain", "domain"),
        ({"prompt": "a", "surprise": 1}, 400, "invalid_request", "surprise"),
        ({"prompt": "a", "prompt_ids": [1]}, 400, "invalid_request", None),
        ({}, 400, "invalid_request", None),
        ({"prompt": ""}, 400, "invalid_request", "prompt"),
        ({"prompt": "a", "temperature": -1}, 400, "invalid_request", "temperature"),
        ({"prompt": "a", "max_tokens": 0}, 400, "invalid_request", "max_tokens"),
        ({"prompt": "a", "max_tokens": "5"}, 400, "invalid_request", "max_tokens"),
        ({"prompt": "a", "logit_bias": {"259": 1}}, 400, "invalid_request", "logit_bias"),
        ({"prompt": "a", "stop_token_ids": [259]}, 400, "invalid_request", "stop_token_ids"),
        ({"prompt": "a", "grammar": {"regex": "("}}, 400, "invalid_grammar", "grammar"),
        (
            {"prompt": "a", "routed_experts": True, "routed_experts_start_len": 2},
            400,
            "invalid_request",
            "routed_experts_start_len",
        ),
        ({"prompt_ids": [259]}, 400, "invalid_request", "prompt_ids"),
        ({"prompt": "a" * 2048}, 400, "prompt_too_long", "prompt"),
        ([], 400, "invalid_request", None),
    ],
)
async def test_it_refuses_with_a_code_and_names_the_field(engine, body, status, code, param) -> None:
    answered, value = await engine.post("/generate", body)
    assert (answered, value["error"]["code"], value["error"]["param"]) == (status, code, param)


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b'{"prompt": "a", "prompt": "b"}', 400, "duplicate_key"),
        (b'{"prompt": "a", "temperature": 1e999}', 400, "not_finite"),
        (b"[" * 5000, 400, "too_deep"),
        (b'{"prompt": "' + b"x" * (5 << 20) + b'"}', 413, "too_large"),
        (b'{"prompt": "\\ud800"}', 400, "bad_text"),
    ],
    ids=["repeated", "infinite", "deep", "large", "surrogate"],
)
async def test_it_refuses_hostile_json(engine, raw, status, code) -> None:
    async with engine.session.post("http://engine/generate", data=io.BytesIO(raw)) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (status, code)


async def test_unknown_paths_and_methods_are_json_too(engine) -> None:
    async with engine.session.get("http://engine/generate") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (405, "http_error")
    async with engine.session.get("http://engine/etc") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "http_error")


async def test_a_full_queue_answers_429_with_retry_after(model_dir, tmp_path) -> None:
    async with running_engine(model_dir, tmp_path, max_sequences=1, max_waiting=1) as client:

        async def status(_: int) -> tuple[int, str | None]:
            body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True}
            async with client.session.post("http://engine/generate", json=body) as response:
                await response.read()
                return response.status, response.headers.get("Retry-After")

        answers = await asyncio.gather(*(status(n) for n in range(12)))
    assert {code for code, _ in answers} == {200, 429}
    assert all(int(retry or 0) >= 1 for code, retry in answers if code == 429)


async def test_clients_that_go_away_leave_no_block_behind(engine) -> None:
    rng = random.Random(5)

    async def one(number: int) -> None:
        body = {
            "prompt": f"{number} " * 20,
            "max_tokens": 1000,
            "ignore_eos": True,
            "cache_salt": str(number),
        }
        async with engine.session.post("http://engine/generate", json=body) as response:
            if response.status == 200:
                for _ in range(rng.randrange(4)):
                    await response.content.readline()
            # Leaving the block without reading to the end closes the connection.

    async with asyncio.timeout(60):
        await asyncio.gather(*(one(number) for number in range(60)))
        snapshot = await engine.service.on_engine(lambda inner: inner.stats.snapshot(inner))
        while snapshot.running or snapshot.waiting or snapshot.kv_used:
            snapshot = await engine.service.next_snapshot(snapshot, 1.0)
    health = await engine.get("/health")
    assert (health["running"], health["waiting"], health["kv_used"]) == (0, 0, 0)


async def test_health_says_who_it_is(engine) -> None:
    health = await engine.get("/health")
    assert (health["state"], health["version"], health["epoch"]) == ("ready", "v1", 7)
    assert health["load_seconds"] > 0
    assert health["rss_bytes"] > 1 << 20
    assert (health["kv_total"], health["device"]) == (4096, "cpu")
    assert health["decode_threads"] == (await engine.get("/stats"))["decode_threads"] == 1


async def test_the_secret_is_asked_for_on_every_path(model_dir, tmp_path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("let-me-in\n")
    headers = {"Authorization": "Bearer let-me-in"}
    async with running_engine(model_dir, tmp_path, headers=headers, secret_file=secret_file) as client:
        assert (await client.get("/health"))["state"] == "ready"
        connector = aiohttp.UnixConnector(str(tmp_path / "e.sock"))
        async with aiohttp.ClientSession(connector=connector) as stranger:
            for path in ("/health", "/stats", "/samples", "/none"):
                async with stranger.get(f"http://engine{path}") as response:
                    assert response.status == 401


async def test_a_trace_shows_the_models_own_choice(engine, model_dir) -> None:
    status, value = await engine.post("/trace", {"prompt": "route me", "domain": "copy"})
    assert status == 200
    assert [token["text"] for token in value["tokens"]] == list("route me")
    assert [layer["layer"] for layer in value["layers"]] == [0, 1, 2]
    for layer in value["layers"]:
        assert layer["prior"] == [0.0, 1.0, 1.0, 0.0]
        for ids, weights, logits in zip(layer["ids"], layer["weights"], layer["logits"], strict=True):
            assert ids == sorted(range(4), key=lambda e: -logits[e])[:2]
            assert sum(weights) == pytest.approx(1.0, abs=1e-3)
    totals = await engine.get("/stats")
    assert totals["prompt_tokens"] == 0


async def test_a_domain_changes_the_answers_routing(engine) -> None:
    plain = (await engine.post("/trace", {"prompt": "route me"}))[1]["layers"]
    pushed = (await engine.post("/trace", {"prompt": "route me", "domain": "support"}))[1]["layers"]
    to_zero = [sum(ids.count(0) for layer in layers for ids in layer["ids"]) for layers in (plain, pushed)]
    assert to_zero[1] > to_zero[0]


async def test_bad_requests_do_not_disturb_a_running_answer(engine) -> None:
    task = asyncio.create_task(engine.generate(prompt="long", max_tokens=200, ignore_eos=True))
    num_refused = 0
    while not task.done():
        async with engine.session.post("http://engine/generate", data=b"{") as response:
            assert (await response.json())["error"]["code"] == "not_json"
            num_refused += 1
    assert task.result()[-1]["usage"]["completion_tokens"] == 200
    assert num_refused > 0


async def test_an_engine_that_breaks_tells_its_readers_and_its_parent(engine) -> None:
    def break_down(inner) -> None:
        def broken(chunks):
            raise ZeroDivisionError("a bug at 0x7f00")

        inner.runner.run = broken

    def answering(prompt: str):
        body = {"prompt": prompt, "max_tokens": 1500, "ignore_eos": True}
        return engine.session.post("http://engine/generate", json=body)

    async with answering("hello") as first, answering("x") as second:
        # Both have left the queue: one that has not is refused with a plain 503 instead.
        for response in (first, second):
            await response.content.readline()
        await engine.service.on_engine(break_down)
        for response in (first, second):
            last = [json.loads(line) async for line in response.content][-1]
            assert (last["type"], last["code"]) == ("error", "engine_failure")
            assert "0x7f" not in last["message"]
    await asyncio.wait_for(engine.service.failed.wait(), 10)
    status, value = await engine.post("/generate", {"prompt": "more"})
    assert (status, value["error"]["code"]) == (503, "not_ready")


async def test_several_answers_share_one_stream_and_one_prompt(engine) -> None:
    body = {"prompt": "z" * 40, "max_tokens": 5, "temperature": 1.0, "seed": 3}
    lines = await engine.generate(**body, n=3)
    assert [line["type"] for line in lines].count("start") == 1
    assert sorted(line["index"] for line in lines if line["type"] == "done") == [0, 1, 2]
    reused = {line["index"]: line["usage"]["reused_tokens"] for line in lines if line["type"] == "done"}
    assert reused == {0: 0, 1: 32, 2: 32}
    alone = answer_of(await engine.generate(**body))
    assert answer_of([line for line in lines if line.get("index") == 0]) == alone


async def test_leaving_ends_every_answer(engine) -> None:
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "n": 4, "temperature": 1.0}
    response = await engine.session.post("http://engine/generate", json=body)
    assert b'"start"' in await response.content.readline()
    response.close()
    snapshot = engine.service.snapshot
    async with asyncio.timeout(20):
        while snapshot.running or snapshot.waiting or snapshot.kv_used or not snapshot.num_steps:
            snapshot = await engine.service.next_snapshot(snapshot, 1.0)


async def test_a_schema_is_kept_and_a_bad_one_refused(engine) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    body = {
        "prompt": "x",
        "max_tokens": 90,
        "temperature": 1.0,
        "seed": 1,
        "grammar": {"json_schema": schema},
    }
    assert len(json.loads(answer_of(await engine.generate(**body))[0])) == 2
    bad = {"prompt": "x", "grammar": {"json_schema": {"items": {"type": "wat"}}}}
    status, refusal = await engine.post("/generate", bad)
    assert (status, refusal["error"]["code"]) == (400, "invalid_grammar")
    assert "at #/items: " in refusal["error"]["message"]


async def test_a_client_that_goes_away_is_nobodys_fault(caplog) -> None:
    async def gone(_request: object) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    async def broken(_request: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ConnectionResetError):
        await errors_as_json(make_mocked_request("POST", "/generate"), gone)  # type: ignore[arg-type]
    assert not caplog.records
    reply = await errors_as_json(make_mocked_request("POST", "/generate"), broken)  # type: ignore[arg-type]
    assert isinstance(reply, web.Response) and reply.status == 500 and caplog.records
