"""Tokens per second of the engine, in process: prefill of one prompt, decode of a batch.

    python -m benchmarks.engine.speed MODEL_DIR... --dtype bfloat16 float32 --threads 1 2 --rounds 5 [--json OUT]

Configurations are measured in turn, round by round, so that a busy minute hits them all; the median and the best of
the rounds are printed, with the share of the machine that other processes took meanwhile. Before anything is timed,
greedy tokens are compared with those of the plain decoder (in bfloat16 a late difference is rounding).
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
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta
from moe_core.engine.sampling_params import SamplingParams
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.cpu.native import library
from moe_core.operations.parts import decoder_of
from moe_core.spec import ServeSpec

PROMPT, NUM_CHECKED = list(range(100, 140)), 24


class NoText:
    """Tokens are counted, not read."""

    def step(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def run(engine: Engine, num_prompts: int, prompt_tokens: int, max_tokens: int, seed: int) -> dict[str, float]:
    """Prefill and decode rates of one batch of distinct random prompts."""
    generator = torch.Generator().manual_seed(seed)
    # The same prompts are measured under several settings: none may find them in the cache.
    engine.pool.forget_all()
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


def answer(engine: Engine) -> list[int]:
    """Greedy tokens after the check's prompt; in float32 they must equal the plain decoder's."""
    engine.submit(PROMPT, SamplingParams(max_tokens=NUM_CHECKED, ignore_eos=True), NoText())
    tokens: list[int] = []
    while engine.has_work:
        tokens += [t for event in engine.step() if isinstance(event, Delta) for t in event.token_ids]
    return tokens


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
    parser.add_argument("--kernels", nargs="+", choices=["torch", "native"], default=["native"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engines = {}
    for path, dtype, kernels in product(options.models, options.dtype, options.kernels):
        model = decoder_of(moe_core.load(path, dtype).eval())
        wanted = model.generate(PROMPT, NUM_CHECKED)
        used = attach(model, 1) if kernels == "native" else "torch"
        spec = ServeSpec(
            model_dir=path, socket_path=Path("none"), dtype=dtype, max_batch_tokens=512, ngram_tokens=0
        )
        engines[path.name, dtype, kernels] = engine = Engine(spec, model)
        agreement = sum(map(int.__eq__, answer(engine), wanted)) / NUM_CHECKED
        print(f"{path.name} {dtype} {used}: greedy agreement with the plain decoder {agreement:.2f}")
    results: dict[str, list[float]] = {}
    before = reading()
    for round_number in range(options.rounds + 1):
        for (name, dtype, kernels), threads in product(engines, options.threads):
            engine = engines[name, dtype, kernels]
            engine.runner.num_threads = threads
            if native := library():
                native.set_threads(threads)
            rates: dict[str, Any] = {"prefill 512": run(engine, 1, 512, 1, round_number)["prefill"]}
            for batch in options.batches:
                seed = 1000 + round_number
                rates[f"decode {batch}"] = run(engine, batch, options.prompt, options.new, seed)["decode"]
            # The first round warms up.
            for what, rate in rates.items() if round_number else ():
                results.setdefault(f"{name} {dtype} {kernels} threads={threads} {what}", []).append(
                    round(rate, 1)
                )
    foreign = foreign_share(before, reading())
    for what, rates_found in results.items():
        print(f"{what:60s} {statistics.median(rates_found):8.1f} tok/s  best {max(rates_found):8.1f}")
    print(f"other processes took {foreign:.0%} of the machine")
    if options.json:
        options.json.write_text(json.dumps({"results": results, "foreign": foreign}, indent=1))


if __name__ == "__main__":
    main()
