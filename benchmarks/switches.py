"""What a larger gate, a domain prior and the routing statistics cost: engines in one process, in turn, step by step.

    python -m benchmarks.switches [--home DIR] [--threads 1] [--rounds 5]

Gate: a mixture of 64 experts, top-2, four layers, whose gate looks at all its 64 rows or at the first eight alone, the same
experts in the same memory; the rows after the eighth are zero and hardly ever chosen. Beside it one that chooses among all,
so that a batch reads more experts and fewer stay in the cache between steps: that is the mixture's cost.
Prior and statistics: one model, whose engine has them or not. A prior too weak to change a choice tells what it costs; one
of full strength also spreads choices over its domains' experts. Processor seconds, since differences of a hundredth drown
in a busy machine's wall time; the same prompts, and the same answers where only costs differ.
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
from moe_core.kernels.cpu.native import library
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations.parts import decoder_of
from moe_core.spec import ModelSpec, ServeSpec

PROMPT_TOKENS, NEW, BATCHES, NUM_DOMAINS = 16, 33, (1, 16), 4
# Added to a logit, the first is lost in its rounding.
WEAK_PRIOR, FULL_PRIOR = 1e-30, 1.0
EXPERTS, CHOSEN = 64, 8


def engine_of(path: Path, model: Decoder, threads: int, *, prior: float = 0.0, counts: bool = True) -> Engine:
    """An engine over a loaded model, with a domain prior of that strength."""
    moe = model.spec.moe
    domains: list[dict[str, Any]] = []
    told: dict[str, Any] = {"num_threads": threads, "max_wait_s": 3600.0}
    if prior:
        told["prior_strength"] = prior
        assert moe is not None
        share = moe.num_experts // NUM_DOMAINS
        domains = [
            {"code": f"d{number}", "name_en": f"D{number}", "name_zh": f"D{number}",
             "experts": list(range(number * share, (number + 1) * share))}
            for number in range(NUM_DOMAINS)
        ]  # fmt: skip
    spec = ServeSpec(model_dir=path, socket_path=Path("none"), domains=domains, **told)  # type: ignore[arg-type]
    engine = Engine(spec, model)
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
        options: dict[str, Any] = {"domain": number % NUM_DOMAINS} if domain else {}
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


def gate_model(num_experts: int, num_chosen: int, width: int = 576) -> Decoder:
    """A random mixture whose active weights do not depend on the number of experts; the rows of its gates after the first
    `num_chosen` are zero, and of equal scores the first is taken."""
    inner = width * 8 // 3
    spec = ModelSpec.parse(
        {
            "family": "mixtral", "vocab_size": 4096, "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": 4, "num_attention_heads": width // 64, "num_key_value_heads": width // 192, "head_dim": 64,
            "max_position_embeddings": 2048, "tie_word_embeddings": True,
            "moe": {
                "moe_layers": [0, 1, 2, 3], "num_experts": num_experts, "top_k": 2, "moe_intermediate_size": inner,
            },
        }
    )  # fmt: skip
    model = random_decoder(spec, seed=0, std=0.05, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for block in model.layers:
            block.mlp.router.weight[num_chosen:] = 0.0  # type: ignore[union-attr,index,operator]
    return model


def look_at(engine: Engine, num_rows: int) -> None:
    """Let the gates of an engine look at their first rows alone."""
    native = engine.runner.native
    assert native is not None
    for layer in native.held.layers:
        layer.num_experts = num_rows


def switches_measured(home: Home, threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step for each engine and batch."""
    path = model_dir("smol-moe-8x", home.models)
    model = decoder_of(moe_core.load(path, "bfloat16").eval())
    attach(model, threads)
    engines = {
        "neither": (engine_of(path, model, threads, counts=False), False),
        "statistics": (engine_of(path, model, threads), False),
        "weak prior": (engine_of(path, model, threads, prior=WEAK_PRIOR), True),
        "prior": (engine_of(path, model, threads, prior=FULL_PRIOR), True),
    }
    gated, spread = gate_model(EXPERTS, CHOSEN), gate_model(EXPERTS, EXPERTS)
    for one in (gated, spread):
        attach(one, threads)
    engines["8 rows"] = (engine_of(path, gated, threads), False)
    look_at(engines["8 rows"][0], CHOSEN)
    engines["64 rows"] = (engine_of(path, gated, threads), False)
    engines["64 experts"] = (engine_of(path, spread, threads), False)
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
            if not answers["neither"] == answers["statistics"] == answers["weak prior"]:
                raise RuntimeError("statistics, or a prior that is as good as none, changed an answer")
    return {"threads": threads, "ms": taken}


def section(found: dict[str, Any]) -> list[str]:
    """The part of the page."""
    lines = [
        f"## What gate, prior and statistics cost a decoding step, {found['threads']} thread(s), processor time", "",
        "| change | sequences | ms before | ms after | change of the median (of each round: least to most) |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    pairs = {
        "a gate of 64 rows in place of 8": ("8 rows", "64 rows"),
        "choices among 64 experts in place of 8": ("64 rows", "64 experts"),
        "routing statistics on": ("neither", "statistics"),
        "a domain prior on, no choice changed": ("statistics", "weak prior"),
        "a domain prior on, choices spread over its experts": ("statistics", "prior"),
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
        "Of 64 experts a batch reads more than of 8, and fewer stay in the cache; a prior of full strength spreads choices "
        "too: that is the cost of the experts, not of gate or prior."
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
