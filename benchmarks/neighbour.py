"""What a busy neighbour costs decoding: one thread, two, and the engine's own choice in turn, beside processes that burn.

    python -m benchmarks.neighbour [--home DIR] [--models smol-moe-8x-q4s smol-moe-8x-q8r] [--threads 2] [--rounds 8]

One engine and one model; a round decodes the same prompt on a fixed single thread, on all of them, and by the policy
(`moe_core/engine/thread_policy.py`), in an order that turns from round to round, and the tokens must be the same. The policy
keeps what it found from round to round, as in a server. Milliseconds of the wall and of this process's processors, by token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestant import Turnout
from benchmarks.home import Home
from benchmarks.models import model_dir
from moe_core.engine.thread_policy import StepThreads
from moe_core.kernels.cpu.native import Library, library

PROMPT, NEW = list(range(10, 42)), 129
BURN = "while True: pass"


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """So many processes that never rest, until the block ends."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(number)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


class Ways:
    """One engine that decodes on one thread, on all, or by its policy."""

    def __init__(self, native: Library, path: Path, threads: int) -> None:
        self._native, self.contestant = native, Turnout(path, threads, kernels=True)
        self._runner = self.contestant.engine.runner
        self.fixed = {"one thread": 1, f"{threads} threads": threads}
        self.threads = threads
        self.forget()

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.fixed, "policy"]

    def forget(self) -> None:
        """The policy begins anew."""
        self._policy = StepThreads(self._native, self.threads, self._runner.costs)

    def decode(self, name: str) -> dict[str, Any]:
        """Milliseconds of a token after the first, the tokens, and the share of steps on fewer threads than all."""
        self._runner.threads = self._policy if name == "policy" else None
        self._native.set_threads(self.threads)
        self.contestant.first([PROMPT], NEW)
        self._native.set_threads(self.fixed.get(name, self.threads))
        engine, fewer, wall, cpu = self.contestant.engine, 0, time.perf_counter(), time.process_time()
        while engine.has_work:
            self.contestant.step()
            fewer += self._native.num_threads < self.threads
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        (answer,) = self.contestant.answers.values()
        steps = len(answer) - 1
        return {
            "wall": wall / steps * 1e3,
            "cpu": cpu / steps * 1e3,
            "fewer": fewer / steps,
            "answer": answer,
        }


def measured(ways: Ways, number: int, rounds: int) -> dict[str, Any]:
    """What each way took beside so many neighbours.

    Raises RuntimeError when tokens differ.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways.names}
    ways.forget()
    loads = [os.getloadavg()[0]]
    with neighbours(number):
        for turn in range(rounds + 1):
            names = ways.names[turn % 3 :] + ways.names[: turn % 3]
            took = {name: ways.decode(name) for name in names}
            answers = [one.pop("answer") for one in took.values()]
            if any(answer != answers[0] for answer in answers):
                raise RuntimeError("the number of threads changed an answer")
            for name, one in took.items() if turn else ():
                found[name].append(one)
    return {"neighbours": number, "loads": [*loads, os.getloadavg()[0]], "ways": found}


def rows(model: str, one: dict[str, Any]) -> list[str]:
    """Lines of the table: medians, the range between quartiles, and the ratio to all threads, round by round."""
    ways = one["ways"]
    base = [took["wall"] for took in ways[list(ways)[1]]]
    lines = []
    for name, taken in ways.items():
        wall, cpu = ([took[what] for took in taken] for what in ("wall", "cpu"))
        low, middle, high = statistics.quantiles(wall, n=4)
        ratio = statistics.median(a / b for a, b in zip(wall, base, strict=True))
        fewer = statistics.fmean(took["fewer"] for took in taken)
        lines.append(
            f"| {model} | {one['neighbours']} | {name} | {middle:.1f} ({low:.1f} to {high:.1f}) | "
            f"{statistics.median(cpu):.1f} | {ratio:.2f} | {statistics.fmean(wall):.1f} | {fewer:.0%} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path)
    parser.add_argument("--models", nargs="+", default=["smol-moe-8x-q4s", "smol-moe-8x-q8r"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    native = library()
    if native is None:
        raise SystemExit("the kernels are not compiled: python -m moe_core.kernels.cpu.build")
    torch.set_num_threads(1)
    home, results = Home.chosen(options.home), []
    print(
        "| model | neighbours | way | wall, ms a token (quartiles) | processor, ms | of all threads | mean | on fewer |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in options.models:
        ways = Ways(native, model_dir(name, home.models), options.threads)
        for number in options.neighbours:
            results.append({"model": name, **measured(ways, number, options.rounds)})
            print("\n".join(rows(name, results[-1])), flush=True)
    print("loads:", [[round(load, 1) for load in one["loads"]] for one in results])
    if options.json:
        options.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
