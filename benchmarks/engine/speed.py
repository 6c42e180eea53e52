"""Tokens per second of the engine, in process: prefill of one prompt, decode of a batch.

    python -m benchmarks.engine.speed MODEL_DIR... --dtype bfloat16 float32 --threads 1 2 --rounds 5 [--json OUT]

Configurations are measured in turn, round by round, so that a busy minute hits them all; the median and the best of
the rounds are printed, with the share of the machine that other processes took meanwhile. Before anything is timed,
greedy tokens are compared with those of the plain decoder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

import moe_core
from moe_core.engine.engine import Engine, use_threads
from moe_core.engine.events import Delta
from moe_core.engine.sequence import SamplingParams
from moe_core.model.decoder import Decoder
from moe_core.spec import ServeSpec


class NoText:
    """Tokens are counted, not read."""

    def step(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def run(engine: Engine, num_prompts: int, prompt_tokens: int, max_tokens: int, seed: int) -> dict[str, float]:
    """Prefill and decode rates of one batch of distinct random prompts."""
    generator = torch.Generator().manual_seed(seed)
    vocab = engine.runner.model.spec.vocab_size
    for _ in range(num_prompts):
        ids = torch.randint(vocab, (prompt_tokens,), generator=generator).tolist()
        engine.submit(ids, SamplingParams(max_tokens=max_tokens, ignore_eos=True), NoText())
    started = first = time.perf_counter()
    num_tokens, seen = 0, set()
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Delta):
                num_tokens += len(event.token_ids)
                seen.add(event.sequence_id)
        if len(seen) == num_prompts and first == started:
            first, at_first = time.perf_counter(), num_tokens
    ended = time.perf_counter()
    return {
        "prefill": num_prompts * prompt_tokens / (first - started),
        "decode": (num_tokens - at_first) / (ended - first)
        if ended > first and num_tokens > at_first
        else 0.0,
    }


def check(model: Decoder, engine: Engine) -> float:
    """Share of greedy tokens that equal the plain decoder's; 1.0 in float32."""
    ids = list(range(100, 140))
    engine.submit(ids, SamplingParams(max_tokens=24, ignore_eos=True), NoText())
    tokens: list[int] = []
    while engine.has_work:
        tokens += [t for event in engine.step() if isinstance(event, Delta) for t in event.token_ids]
    plain = model.generate(ids, 24)
    return sum(a == b for a, b in zip(tokens, plain, strict=False)) / len(plain)


def foreign_share(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The share of all processors' time that others took between two readings."""
    wall = after[0] - before[0]
    return max(0.0, (after[1] - before[1]) / wall) if wall else 0.0


def reading() -> tuple[float, float]:
    """All processors' total time, and what processes other than this one used of it, in ticks."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    own = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    return float(sum(fields)), sum(fields) - fields[3] - fields[4] - own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engines = {}
    for path, dtype in product(options.models, options.dtype):
        model = moe_core.load(path, dtype)
        spec = ServeSpec(model_dir=path, socket_path=Path("none"), dtype=dtype, max_batch_tokens=512)
        engines[path.name, dtype] = engine = Engine(spec, model.eval())
        print(f"{path.name} {dtype}: greedy agreement {check(model, engine):.2f}")
    results: dict[str, list[float]] = {}
    before = reading()
    for round_number in range(options.rounds + 1):
        for (name, dtype), threads in product(engines, options.threads):
            use_threads(threads)
            engine = engines[name, dtype]
            rates: dict[str, Any] = {"prefill 512": run(engine, 1, 512, 1, round_number)["prefill"]}
            for batch in options.batches:
                rates[f"decode {batch}"] = run(
                    engine, batch, options.prompt, options.new, 1000 + round_number
                )["decode"]
            # The first round warms up.
            for what, rate in rates.items() if round_number else ():
                results.setdefault(f"{name} {dtype} threads={threads} {what}", []).append(round(rate, 1))
    foreign = foreign_share(before, reading())
    for what, rates_found in results.items():
        print(f"{what:55s} {statistics.median(rates_found):8.1f} tok/s  best {max(rates_found):8.1f}")
    print(f"other processes took {foreign:.0%} of the machine")
    if options.json:
        options.json.write_text(json.dumps({"results": results, "foreign": foreign}, indent=1))


if __name__ == "__main__":
    main()
