"""Sparse against dense of the same total size, in our own engine over HTTP: what a mixture gains, and where it does not.

Requests a second at equal 95th percentile: dense is loaded by a few clients, each of which asks again when it has its
answer; the mixture by more and more of them while its 95th percentile stays below dense's. A closed loop, not arrivals
by chance.

Decoding together: the more sequences share a step, the more of the experts are read for one of them or another, until all
are, and what the mixture gains is arithmetic alone. Beside the measured ratio stands what the bytes say.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.accounting import Meter
from benchmarks.client import complete
from benchmarks.home import Home
from benchmarks.models import model_dir
from benchmarks.peers.server import Server
from benchmarks.peers.turnout import dense_engine, engine_servers
from benchmarks.prompts import LONG, SHORT, SUMMARY, Prompts
from moe_core.checkpoint.store import read_spec
from moe_core.spec import ModelSpec

SUMMARY_NEW, MIX_NEW = 200, 64
DENSE_CLIENTS, MOST_CLIENTS, REQUESTS_A_CLIENT = 4, 16, 2
# Sequences that decode together, after prompts that all fit into one step.
TOGETHER, TOGETHER_PROMPT, TOGETHER_NEW = (1, 2, 4, 8, 16), 16, 25


@dataclass(slots=True)
class Load:
    """What so many clients got."""

    clients: int
    requests_s: float
    p95_s: float


def sparse_measured(
    home: Home, model: str, prompts: Prompts, rounds: int, threads: int = 2
) -> dict[str, Any]:
    """Rates of both, in turn; and requests a second at the same 95th percentile, once."""
    dense = dense_engine(home, "dense-big")
    sparse = engine_servers(home, model, ("16 bits",))[0]
    pair = {"dense": dense, "sparse": sparse}
    found: dict[str, Any] = {"samples": {name: [] for name in pair}, "together": {name: [] for name in pair}}
    found["bytes"] = _by_bytes(home, model)
    for number in range(rounds):
        for name, server in pair.items():
            server.start(threads)
            try:
                found["samples"][name].append(_rates(server, prompts, number))
                found["together"][name].append(
                    {str(count): asyncio.run(_together(server, prompts, count)) for count in TOGETHER}
                )
                if number == rounds - 1:
                    found[name] = [vars_of(load) for load in _loads(server, prompts, found.get("dense"))]
            finally:
                server.stop()
    return found


def vars_of(load: Load) -> dict[str, float]:
    """Plain data."""
    return {"clients": load.clients, "requests_s": load.requests_s, "p95_s": load.p95_s}


def _rates(server: Server, prompts: Prompts, number: int) -> dict[str, dict[str, float]]:
    asyncio.run(complete(server.at, prompts.window(90, LONG), 8))
    return {
        "prefill 512": _timed(server, prompts.window(number, LONG), 1, LONG),
        "decode 1": _timed(server, prompts.window(20 + number, SHORT), 64, 63, from_first=True),
        "summary": _timed(server, prompts.window(number, SUMMARY), SUMMARY_NEW, 1),
    }


def _timed(
    server: Server, prompt: list[int], new: int, tokens: int, *, from_first: bool = False
) -> dict[str, float]:
    meter = Meter(server.pids())
    meter.start()
    asyncio.run(complete(server.at, prompt, new, on_first=meter.start if from_first else None))
    return {**meter.read(), "tokens": tokens}


async def _together(server: Server, prompts: Prompts, count: int) -> dict[str, float]:
    """Seconds, of the wall and of processors, from the last of the first tokens to the last token of all."""
    meter, left = Meter(server.pids()), count

    def began() -> None:
        nonlocal left
        left -= 1
        if not left:
            meter.start()

    windows = prompts.windows(500 + count, count, TOGETHER_PROMPT)
    await asyncio.gather(*(complete(server.at, one, TOGETHER_NEW, on_first=began) for one in windows))
    return {**meter.read(), "tokens": count * (TOGETHER_NEW - 1)}


def _by_bytes(home: Home, model: str) -> dict[str, float]:
    """How many times the mixture's bytes of a decoding step a dense step of the same size has, by the sequences in it."""
    dense, sparse = (read_spec(model_dir(name, home.models)) for name in ("dense-big", model))
    assert isinstance(dense, ModelSpec) and isinstance(sparse, ModelSpec)
    return {str(count): step_weights(dense, count) / step_weights(sparse, count) for count in TOGETHER}


def step_weights(spec: ModelSpec, num_sequences: int) -> float:
    """How many weights a decoding step reads, when each sequence chooses its experts by chance."""
    width, layers = spec.hidden_size, spec.num_hidden_layers
    heads = (2 * spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim
    shared = spec.vocab_size * width + layers * heads * width
    moe = spec.moe
    if moe is None:
        return shared + layers * 3 * width * spec.intermediate_size
    read = moe.num_experts * (1 - (1 - moe.top_k / moe.num_experts) ** num_sequences)
    return shared + layers * 3 * width * moe.moe_intermediate_size * read


def _loads(server: Server, prompts: Prompts, dense: list[dict[str, float]] | None) -> list[Load]:
    """Dense: one load. The mixture: twice the clients each time, until it is slower than dense was."""
    if dense is None:
        return [asyncio.run(_load(server, prompts, DENSE_CLIENTS))]
    loads: list[Load] = []
    clients = DENSE_CLIENTS
    while clients <= MOST_CLIENTS and (not loads or loads[-1].p95_s <= dense[0]["p95_s"]):
        loads.append(asyncio.run(_load(server, prompts, clients)))
        clients = clients * 3 // 2
    return loads


async def _load(server: Server, prompts: Prompts, clients: int) -> Load:
    seconds: list[float] = []

    async def client(number: int) -> None:
        for turn in range(REQUESTS_A_CLIENT):
            began = time.perf_counter()
            await complete(server.at, prompts.window(clients * 7 + number * 2 + turn, LONG), MIX_NEW)
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    wall = time.perf_counter() - began
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    return Load(clients, len(seconds) / wall, p95)


def section(found: dict[str, Any]) -> list[str]:
    """The part of the page."""
    lines = [
        "## Sparse against dense of the same total size",
        "",
        "In our engine, bfloat16, two threads; medians.",
        "",
    ]
    lines += ["| | dense-big | smol-moe-8x | times as fast: wall, processor |", "|---|---|---|---|"]
    titles = {
        "prefill 512": "prompt of 512, tokens a second",
        "decode 1": "decoding, tokens a second",
        "summary": f"{SUMMARY:,} tokens in, {SUMMARY_NEW} out, seconds",
    }
    for metric, title in titles.items():
        middle = {
            (name, clock): statistics.median(one[metric][clock] for one in rows)
            for name, rows in found["samples"].items() for clock in ("wall", "cpu")
        }  # fmt: skip
        tokens = found["samples"]["dense"][0][metric]["tokens"]
        shown = {
            name: middle[name, "wall"] if metric == "summary" else tokens / middle[name, "wall"]
            for name in ("dense", "sparse")
        }
        ratio = [middle["dense", clock] / max(middle["sparse", clock], 1e-9) for clock in ("wall", "cpu")]
        lines.append(
            f"| {title} | {shown['dense']:.1f} | {shown['sparse']:.1f} | {ratio[0]:.2f}, {ratio[1]:.2f} |"
        )
    lines.append(_equal_p95(found))
    return [*lines, *_by_sequences(found)]


def _by_sequences(found: dict[str, Any]) -> list[str]:
    lines = ["", "Where bandwidth makes it less: decoding together, tokens a second.", ""]
    lines += ["| sequences | dense-big | smol-moe-8x | times as fast: wall, processor | bytes alone allow |"]
    lines += ["|---|---|---|---|---|"]
    for count in map(str, TOGETHER):
        middle = {
            (name, clock): statistics.median(one[count][clock] for one in rows)
            for name, rows in found["together"].items() for clock in ("wall", "cpu")
        }  # fmt: skip
        tokens = found["together"]["dense"][0][count]["tokens"]
        rates = [tokens / middle[name, "wall"] for name in ("dense", "sparse")]
        wall, cpu = (middle["dense", clock] / max(middle["sparse", clock], 1e-9) for clock in ("wall", "cpu"))
        lines.append(
            f"| {count} | {rates[0]:.1f} | {rates[1]:.1f} | {wall:.2f}, {cpu:.2f} | {found['bytes'][count]:.2f} |"
        )
    return lines


def _equal_p95(found: dict[str, Any]) -> str:
    dense = found["dense"][0]
    fitting = [load for load in found["sparse"] if load["p95_s"] <= dense["p95_s"]]
    best = max(fitting, key=lambda load: load["requests_s"], default=None)
    told = "none of the loads stayed below | –"
    if best:
        told = f"{best['requests_s']:.2f} (p95 {best['p95_s']:.1f} s, {best['clients']} clients) | "
        told += f"{best['requests_s'] / dense['requests_s']:.2f}"
    return (
        f"| {LONG} in, {MIX_NEW} out, requests a second at no more than dense's p95 | {dense['requests_s']:.2f} "
        f"(p95 {dense['p95_s']:.1f} s, {dense['clients']} clients) | {told} |"
    )
