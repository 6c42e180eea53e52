"""With routing that is known beforehand, the counts match to the token, through the HTTP server."""

from __future__ import annotations

import asyncio
import base64
import json
import random

import numpy as np
import pytest

from tests.moe_core.engine.http_engine import Client, answer_of, running_engine
from tests.moe_core.engine.model_dirs import route_by_token, tiny_model, write_model_dir

DOMAINS = [
    {"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0]},
    {"code": "copy", "name_en": "Copy", "name_zh": "文案", "experts": [1]},
]
SHAPE_NLE = (3, 3, 4)


@pytest.fixture(scope="module")
def known_dir(tmp_path_factory):
    model = tiny_model()
    route_by_token(model)
    path = tmp_path_factory.mktemp("model") / "known"
    write_model_dir(path, model)
    return path


class Expected:
    """Counts by the rule alone: byte b goes to experts b % 4 and (b + 1) % 4 in every layer."""

    def __init__(self) -> None:
        self.counts_PNLE = np.zeros((2, *SHAPE_NLE), dtype=np.int64)
        self.reach_PN2 = np.zeros((2, SHAPE_NLE[0], 2), dtype=np.int64)

    def add(self, lines: list[dict], prompt: bytes, domain: str | None) -> None:
        row = 0 if domain is None else 1 + [item["code"] for item in DOMAINS].index(domain)
        for byte in prompt[lines[0]["reused_tokens"] :]:
            self._token(0, row, byte)
        # The last sampled token is never computed.
        for byte in answer_of(lines)[1][:-1]:
            self._token(1, row, byte)

    def _token(self, phase: int, row: int, byte: int) -> None:
        self.counts_PNLE[phase, row, :, byte % 4] += 1
        self.counts_PNLE[phase, row, :, (byte + 1) % 4] += 1
        own = DOMAINS[row - 1]["experts"] if row else []
        is_hit = bool({byte % 4, (byte + 1) % 4} & set(own))
        self.reach_PN2[phase, row] += (SHAPE_NLE[1], SHAPE_NLE[1] * is_hit)


def decoded(text: str, dtype: str, shape: tuple[int, ...] = SHAPE_NLE) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(shape).astype(np.int64)


def reach(sample: dict, name: str, dtype: str) -> np.ndarray:
    """Visits of expert layers and hits of own experts, by domain."""
    return decoded(sample[name], dtype, (SHAPE_NLE[0], 2))


async def many_requests(client: Client, expected: Expected, *, longest: int = 25) -> None:
    rng = random.Random(11)
    shared = bytes(rng.randrange(32, 127) for _ in range(64))

    async def one() -> None:
        prompt = rng.choice([b"", shared[:16], shared]) + bytes(
            rng.randrange(32, 127) for _ in range(rng.randrange(1, 70))
        )
        domain = rng.choice([None, "support", "copy"])
        lines = await client.generate(
            prompt=prompt.decode(), domain=domain, max_tokens=rng.randrange(1, longest)
        )
        expected.add(lines, prompt, domain)

    await asyncio.gather(*(one() for _ in range(25)))


async def test_totals_match_to_the_token(known_dir, tmp_path) -> None:
    # Small numbers, so that prompts are cut, sequences are preempted and prefixes reused.
    options = {"kv_tokens": 256, "max_batch_tokens": 40, "max_chunk_tokens": 9, "max_sequences": 6}
    expected = Expected()
    async with running_engine(known_dir, tmp_path, domains=DOMAINS, prior_mode="none", **options) as client:
        await many_requests(client, expected, longest=90)
        totals = await client.get("/stats")
    assert totals["domains"] == ["", "support", "copy"]
    assert totals["layers"] == [0, 1, 2]
    assert np.array_equal(decoded(totals["counts_decode"], "<i8"), expected.counts_PNLE[1])
    assert np.array_equal(decoded(totals["counts"], "<i8"), expected.counts_PNLE.sum(0))
    assert np.array_equal(reach(totals, "reach_decode", "<i8"), expected.reach_PN2[1])
    assert np.array_equal(reach(totals, "reach", "<i8"), expected.reach_PN2.sum(0))
    assert (expected.reach_PN2[:, 1:, 1] > 0).all()
    assert min(totals["preemptions"], totals["reused_tokens"]) > 0
    assert totals["prompt_tokens"] * 2 == expected.counts_PNLE[0, :, 0].sum()


async def test_the_windows_of_the_sample_stream_sum_to_the_totals(known_dir, tmp_path) -> None:
    expected = Expected()
    async with (
        running_engine(known_dir, tmp_path, domains=DOMAINS, prior_mode="none") as client,
        client.session.get("http://engine/samples") as stream,
        asyncio.timeout(60),
    ):
        samples = [json.loads(await stream.content.readline())]
        await many_requests(client, expected)
        totals = await client.get("/stats")
        while sum(sample["output_tokens"] for sample in samples) < totals["output_tokens"]:
            samples.append(json.loads(await stream.content.readline()))
    assert [sample["seq"] for sample in samples] == list(range(1, len(samples) + 1))
    assert np.array_equal(sum(decoded(s["counts"], "<u4") for s in samples), expected.counts_PNLE.sum(0))
    assert np.array_equal(sum(decoded(s["counts_decode"], "<u4") for s in samples), expected.counts_PNLE[1])
    assert np.array_equal(sum(reach(s, "reach", "<u4") for s in samples), expected.reach_PN2.sum(0))
    for key in ("prompt_tokens", "reused_tokens", "output_tokens"):
        assert sum(sample[key] for sample in samples) == totals[key]
    assert sum(len(sample["first_token_ms"]) for sample in samples) == 25


async def test_the_last_cumulative_sample_of_a_draining_engine_is_the_total(known_dir, tmp_path) -> None:
    expected = Expected()
    options = {"domains": DOMAINS, "prior_mode": "none"}
    async with (
        running_engine(known_dir, tmp_path, **options) as client,
        client.session.get("http://engine/samples?cumulative=1") as stream,
        asyncio.timeout(60),
    ):
        await many_requests(client, expected)
        client.service.closing.set()
        last = [json.loads(line) async for line in stream.content][-1]
    assert np.array_equal(decoded(last["counts"], "<i8"), expected.counts_PNLE.sum(0))
    assert np.array_equal(decoded(last["counts_decode"], "<i8"), expected.counts_PNLE[1])


async def test_an_idle_engine_still_sends_a_sample_a_second(known_dir, tmp_path) -> None:
    async with (
        running_engine(known_dir, tmp_path) as client,
        client.session.get("http://engine/samples") as stream,
    ):
        async with asyncio.timeout(10):
            samples = [json.loads(await stream.content.readline()) for _ in range(2)]
    assert samples[1]["t_ms"] > samples[0]["t_ms"]
    assert not any(base64.b64decode(samples[1]["counts"]))
    assert samples[1]["output_tokens"] == 0


async def test_a_mask_keeps_a_domain_on_its_experts(known_dir, tmp_path) -> None:
    domains = [{"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0, 3]}]
    async with running_engine(known_dir, tmp_path, domains=domains, prior_mode="mask") as client:
        lines = await client.generate(prompt="anything at all", domain="support", max_tokens=9)
        await client.generate(prompt="anything at all", max_tokens=9)
        counts = np.frombuffer(base64.b64decode((await client.get("/stats"))["counts"]), "<i8").reshape(
            2, 3, 4
        )
    computed = 15 + lines[-1]["usage"]["completion_tokens"] - 1
    assert counts[1].tolist() == [[computed, 0, 0, computed]] * 3
    assert (counts[0].sum(-1) == 2 * computed).all()
    assert (counts[0][:, 1:3] > 0).all()
