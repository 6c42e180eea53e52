"""What a larger gate, a domain prior and the routing statistics cost: engines in one process, in turn, step by step.

    python -m benchmarks.switches [--home DIR] [--threads 1] [--rounds 5]

Gate: mixtures of 8 and of 64 experts of one size, top-2, four layers: the same weights are active, only the gate grows.
Prior and statistics: one model, whose engine has them or not. Processor seconds, since differences of a hundredth drown
in a busy machine's wall time; the same prompts, and the same answers where nothing but statistics differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import moe_core
from benchmarks.contestant import NoText
from benchmarks.home import Home
from benchmarks.models import model_dir
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta
from moe_core.engine.native_step import NativeStep
from moe_core.engine.sampling_params import SamplingParams
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.cpu.library import library
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec, ServeSpec

PROMPT_TOKENS, NEW, BATCHES, NUM_DOMAINS = 16, 33, (1, 16), 4


def engine_of(path: Path, model: Decoder, threads: int, *, prior: bool, counts: bool = True) -> Engine:
    """An engine over a loaded model."""
    moe = model.spec.moe
    domains: list[dict[str, Any]] = []
    if prior:
        assert moe is not None
        share = moe.num_experts // NUM_DOMAINS
        domains = [
            {"code": f"d{number}", "name_en": f"D{number}", "name_zh": f"D{number}",
             "experts": list(range(number * share, (number + 1) * share))}
            for number in range(NUM_DOMAINS)
        ]  # fmt: skip
    told = {"model_dir": path, "socket_path": Path("none"), "num_threads": threads, "max_wait_s": 3600.0}
    engine = Engine(ServeSpec(**told, domains=domains), model)  # type: ignore[arg-type]
    if not counts:
        runner = engine.runner
        runner.counts = None
        if runner.native is not None:
            runner.native = NativeStep.of(model, runner.cache, None, runner.prior)
    return engine


def step_seconds(engine: Engine, batch: int, seed: int, *, domain: bool) -> tuple[float, list[list[int]]]:
    """Processor seconds of a decoding step with so many sequences, and the answers."""
    engine.pool.forget_all()
    random = torch.Generator().manual_seed(seed)
    vocab = engine.runner.model.spec.vocab_size
    answers: dict[int, list[int]] = {}
    for number in range(batch):
        ids = torch.randint(10, vocab, (PROMPT_TOKENS,), generator=random).tolist()
        options = {"domain": number % NUM_DOMAINS} if domain else {}
        sampling = SamplingParams(max_tokens=NEW, ignore_eos=True)
        answers[engine.submit(ids, sampling, NoText(), **options).id] = []
    began, steps = 0.0, 0
    while engine.has_work:
        if all(answers.values()):
            began = began or time.process_time()
            steps += 1
        for event in engine.step():
            if isinstance(event, Delta):
                answers[event.sequence_id] += event.token_ids
    return (time.process_time() - began) / steps, list(answers.values())


def gate_model(num_experts: int) -> Decoder:
    """A random mixture whose active weights do not depend on the number of experts."""
    spec = ModelSpec.parse(
        {
            "family": "mixtral", "vocab_size": 4096, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 4, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "max_position_embeddings": 2048, "tie_word_embeddings": True,
            "moe": {
                "moe_layers": [0, 1, 2, 3], "num_experts": num_experts, "top_k": 2, "moe_intermediate_size": 1536,
            },
        }
    )  # fmt: skip
    return random_decoder(spec, seed=0, std=0.05, dtype=torch.bfloat16).eval()


def switches_measured(home: Home, threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step for each engine and batch."""
    path = model_dir("smol-moe-8x", home.models)
    model = moe_core.load(path, "bfloat16").eval()
    attach(model, threads)
    engines = {
        "neither": (engine_of(path, model, threads, prior=False, counts=False), False),
        "statistics": (engine_of(path, model, threads, prior=False), False),
        "statistics and prior": (engine_of(path, model, threads, prior=True), True),
    }
    for number in (8, 64):
        gated = gate_model(number)
        attach(gated, threads)
        engines[f"{number} experts"] = (engine_of(path, gated, threads, prior=False), False)
    native = library()
    assert native is not None
    native.set_threads(threads)
    taken: dict[str, list[float]] = {}
    for seed in range(rounds + 1):
        for batch in BATCHES:
            answers = {}
            for name, (engine, domain) in engines.items():
                seconds, answers[name] = step_seconds(engine, batch, seed, domain=domain)
                if seed:
                    taken.setdefault(f"{name}, {batch}", []).append(seconds * 1e3)
            if answers["neither"] != answers["statistics"]:
                raise RuntimeError("statistics changed an answer")
    return {"threads": threads, "ms": taken}


def section(found: dict[str, Any]) -> list[str]:
    """The part of the page."""
    lines = [
        f"## What gate, prior and statistics cost a decoding step, {found['threads']} thread(s), processor time", "",
        "| change | sequences | ms before | ms after | change of the median (of each round: least to most) |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    pairs = {
        "8 → 64 experts, the same weights active": ("8 experts", "64 experts"),
        "routing statistics on": ("neither", "statistics"),
        "a domain prior on": ("statistics", "statistics and prior"),
    }
    for title, (before, after) in pairs.items():
        for batch in BATCHES:
            first, second = found["ms"][f"{before}, {batch}"], found["ms"][f"{after}, {batch}"]
            changes = [b / a - 1 for a, b in zip(first, second, strict=True)]
            a, b = statistics.median(first), statistics.median(second)
            lines.append(
                f"| {title} | {batch} | {a:.2f} | {b:.2f} | {b / a - 1:+.1%} ({min(changes):+.1%} to {max(changes):+.1%}) |"
            )
    lines.append("")
    lines.append(
        "With 16 sequences more experts of 64 are read than of 8: that is the mixture's cost, not the gate's."
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = switches_measured(Home.chosen(options.home), options.threads, options.rounds)
    print(json.dumps(found))
    print("\n".join(section(found)))


if __name__ == "__main__":
    main()
