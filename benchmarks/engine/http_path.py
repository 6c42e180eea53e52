"""Where the way from the engine to a client loses time: the same requests in process, over its socket, through the gateway.

    python -m benchmarks.engine.http_path [--home DIR] [--bits 16|8|4] [--concurrency 8 16] [--new 128] [--rounds 3]

Processor seconds by process (and, in the engine, by thread) for a thousand tokens that came out; wall time beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.accounting import TICKS_A_SECOND, tree
from benchmarks.client import together
from benchmarks.home import Home
from benchmarks.models import model_dir
from benchmarks.peers.turnout import FORMATS, engine_servers, gateways
from benchmarks.prompts import SHORT, Prompts

MODEL = "smol-moe-8x"
Clocks = dict[str, float]


def clocks(pids: set[int]) -> Clocks:
    """Processor seconds of each process, and of each thread of an engine."""
    found: Clocks = {}
    for pid in pids:
        try:
            words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
            name = process_name([word.decode(errors="replace") for word in words])
            for task in (Path("/proc") / str(pid) / "task").iterdir():
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                label = f"{name}, thread {task.name}" if name == "engine" else name
                found[label] = found.get(label, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
        except OSError:
            continue
    return found


def process_name(words: list[str]) -> str:
    """What a process is to us."""
    line = " ".join(words)
    for mark, name in (
        ("moe_core.engine.server", "engine"), ("uvicorn", "web"), ("reconciler", "reconciler"), ("celery", "worker"),
        ("postgres", "PostgreSQL"), ("valkey", "Valkey"),
    ):  # fmt: skip
        if mark in line:
            return name
    return "supervisor"


def taken(ask: Callable[[], int], pids: Callable[[], set[int]]) -> tuple[int, float, Clocks]:
    """Tokens, seconds of the wall, and processor seconds by name, the client's own included."""
    before, own, began = clocks(pids()), time.process_time(), time.perf_counter()
    tokens = ask()
    wall = time.perf_counter() - began
    after = clocks(pids())
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    return tokens, wall, {**spent, "client": time.process_time() - own}


def in_process(home: Home, bits: str, threads: int) -> tuple[Callable[[list[list[int]], int], int], Any]:
    """The engine without any way to it."""
    import moe_core
    from benchmarks.contestant import NoText
    from moe_core.engine.engine import Engine
    from moe_core.engine.events import Delta
    from moe_core.engine.sampling_params import SamplingParams
    from moe_core.kernels.cpu.attach import attach
    from moe_core.operations.parts import decoder_of
    from moe_core.spec import ServeSpec

    path = model_dir(MODEL + FORMATS[bits][1], home.models)
    model = decoder_of(moe_core.load(path, "bfloat16").eval())
    attach(model, threads)
    told: dict[str, Any] = {"num_threads": threads, "max_wait_s": 3600.0, "max_batch_tokens": 512}
    engine = Engine(ServeSpec(model_dir=path, socket_path=Path("none"), **told), model)

    def ask(prompts: list[list[int]], new: int) -> int:
        for prompt in prompts:
            engine.submit(prompt, SamplingParams(max_tokens=new, ignore_eos=True), NoText())
        tokens = 0
        while engine.has_work:
            tokens += sum(len(event.token_ids) for event in engine.step() if isinstance(event, Delta))
        return tokens

    return ask, engine


def report(name: str, rounds: list[tuple[int, float, Clocks]]) -> None:
    """One line for the whole, one for each process."""
    tokens = rounds[0][0]
    wall = statistics.median(one[1] for one in rounds)
    total = statistics.median(sum(one[2].values()) for one in rounds)
    print(f"{name:24s} {tokens / wall:8.1f} tok/s wall, {1000 * total / tokens:8.3f} ms processor a token")
    labels = sorted({label for one in rounds for label in one[2]})
    for label in labels:
        spent = statistics.median(one[2].get(label, 0.0) for one in rounds)
        if 1000 * spent / tokens >= 0.005:
            print(f"    {label:28s} {1000 * spent / tokens:8.3f} ms a token")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path)
    parser.add_argument("--bits", choices=["16", "8", "4"], default="4")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    home, bits = Home.chosen(options.home), f"{options.bits} bits"
    prompts = Prompts.of(model_dir(MODEL, home.models))
    ask, engine = in_process(home, bits, options.threads)
    socket = engine_servers(home, MODEL, (bits,), ngram_tokens=None)[0]
    gateway = next(one for one in gateways(home, MODEL) if one.precision == bits)
    try:
        socket.start(options.threads)
        gateway.start(options.threads)
        for count in options.concurrency:
            rounds: dict[str, list[tuple[int, float, Clocks]]] = {"in process": []}
            for number in range(options.rounds):
                windows = prompts.windows(number * 64 + count, count, SHORT)
                found = taken(lambda w=windows: ask(w, options.new), lambda: set[int]())
                rounds["in process"].append(found)
                for name, server in (("engine's socket", socket), ("gateway", gateway)):

                    def over_http(server: Any = server, windows: list[list[int]] = windows) -> int:
                        answers = asyncio.run(together(server.at, windows, options.new))
                        return sum(answer.num_tokens for answer in answers)

                    rounds.setdefault(name, []).append(taken(over_http, lambda s=server: tree(s.pids())))
            print(f"\n{count} at once, {options.bits} bits, load {os.getloadavg()[0]:.1f}")
            for name, one in rounds.items():
                report(name, one)
    finally:
        engine.close()
        socket.stop()
        gateway.stop()
        gateway.platform.stop()


if __name__ == "__main__":
    main()
