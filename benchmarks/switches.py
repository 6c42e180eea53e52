"""What a larger gate, a domain prior and the routing statistics cost a decoding step, to a hundredth of it.

    python -m benchmarks.switches [--home DIR] [--threads 1] [--seconds 90]

One engine, one model, one place in memory: from one step to the next a switch is thrown, in blocks of random order
(`benchmarks.paired`), and every answer must be the same as with all of them off, and with all on.

Statistics: whether a step leaves its choices and they are counted; reading them five times a second is timed by itself.
Prior: one too weak to change a choice, for every sequence. Gate: the eight rows that the model has, or 56 more beside them
that nobody chooses: the same experts, the same active weights.

A step is what is served: all layers, attention and head. Beside it stand four layers with hardly a
head. That a prior of full strength, or a choice among 64 experts, spreads a batch over more experts and so reads more of
them is the cost of the experts, and not in here. Seconds of the processor, one thread unless told otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import moe_core
from benchmarks.contestant import NoText
from benchmarks.home import Home
from benchmarks.models import model_dir
from benchmarks.paired import LEAST_BLOCKS, Block, Effect, Setting, effects_of, settings
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta
from moe_core.engine.native_prior import NativePrior
from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.stats import PUBLISH_EVERY_S
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.plan import narrowed
from moe_core.model.decoder import Decoder
from moe_core.model.domain_prior import DomainPrior
from moe_core.model.init import random_decoder
from moe_core.operations.parts import decoder_of
from moe_core.spec import ModelSpec, ServeSpec

PROMPT_TOKENS, NEW, BATCHES, NUM_DOMAINS = 16, 65, (1, 16), 4
# The most for each row of the table.
SECONDS = 90.0
# No more is measured when every interval is so much of its claim.
ENOUGH = 0.6
# Added to a logit, it is lost in its rounding.
WEAK_PRIOR = 1e-30
ROWS, CHOSEN = 64, 8
# Far below any logit: a row that nobody chooses.
NEVER = -1e4
# What is claimed of each switch, and of how wide an interval is still worth telling.
CLAIMS = {"statistics": 0.01, "prior": 0.01, "gate": 0.03}
NAMES = {
    "statistics": "routing statistics on",
    "prior": "a domain prior on, no choice changed",
    "gate": "a gate of 64 rows in place of 8",
}
MODELS = {"16": "smol-moe-8x", "8": "smol-moe-8x-q8r", "4": "smol-moe-8x-q4s"}
WORST = "4 layers, 16 bits"


@dataclass(slots=True)
class Switches:
    """An engine whose statistics, prior and gate rows can be changed between two steps."""

    engine: Engine
    counts: RoutingCounts
    prior: NativePrior
    # Keep what the plan of the step points to.
    gates: list[torch.Tensor]

    @classmethod
    def of(cls, path: Path, model: Decoder, threads: int) -> Switches:
        """Over a model that has its kernels attached; its gates get rows that nobody chooses, up to 64."""
        engine = Engine(_served(path, threads), model)
        native, moe, counts = engine.runner.native, model.spec.moe, engine.runner.counts
        assert native is not None
        assert moe is not None
        assert counts is not None
        weak_NLE = torch.full((NUM_DOMAINS, len(moe.moe_layers), ROWS), WEAK_PRIOR)
        prior = NativePrior.of(DomainPrior(weak_NLE, moe.top_k))
        assert prior is not None
        gates: list[torch.Tensor] = []
        for plan, block in zip(native.held.layers, model.layers, strict=True):
            weight_ED = block.mlp.router.weight.detach()  # type: ignore[union-attr,operator]
            num_rows = min(CHOSEN, weight_ED.shape[0])
            rows = torch.cat([weight_ED[:num_rows], weight_ED.new_zeros(ROWS - num_rows, weight_ED.shape[1])])
            bias = torch.cat([rows.new_zeros(num_rows), rows.new_full((ROWS - num_rows,), NEVER)])
            # As the engine tells a gate: in bfloat16 where every number is exactly one.
            rows = narrowed({"weight": rows})["weight"]
            plan.gate.router, plan.gate.bias = rows.data_ptr(), bias.data_ptr()
            plan.gate.narrow = rows.dtype is torch.bfloat16
            gates += [rows, bias]
        return cls(engine, counts, prior, gates)

    def throw(self, told: Setting) -> None:
        """Set every switch; the next step is the first that sees it."""
        runner, native = self.engine.runner, self.engine.runner.native
        assert native is not None
        runner.counts = native.counts = self.counts if told.get("statistics", False) else None
        native.prior = self.prior if told.get("prior", False) else None
        num_rows = ROWS if told.get("gate", False) else CHOSEN
        for layer in native.held.layers:
            layer.num_experts = num_rows


def _served(path: Path, threads: int) -> ServeSpec:
    domains = [
        {"code": f"d{number}", "name_en": f"D{number}", "name_zh": f"D{number}", "experts": [number]}
        for number in range(NUM_DOMAINS)
    ]
    told: dict[str, Any] = {"num_threads": threads, "ngram_tokens": 0, "max_wait_s": 3600.0, "prior_strength": 0.0}
    return ServeSpec(model_dir=path, socket_path=Path("none"), domains=domains, **told)  # type: ignore[arg-type]


@dataclass(slots=True)
class Answers:
    """What some sequences said, and what each step in which all of them decoded took under which setting."""

    tokens: list[list[int]]
    steps: list[tuple[Setting, float]]


def answers(switches: Switches, batch: int, told: Iterator[Setting], clock: Callable[[], float]) -> Answers:
    """Decode so many sequences to their end, a setting a step."""
    engine = switches.engine
    engine.pool.forget_all()
    drawn = torch.Generator().manual_seed(batch)
    vocab = engine.runner.model.spec.vocab_size
    said: dict[int, list[int]] = {}
    for number in range(batch):
        ids = torch.randint(10, vocab, (PROMPT_TOKENS,), generator=drawn).tolist()
        sampling = SamplingParams(max_tokens=NEW, ignore_eos=True)
        said[engine.submit(ids, sampling, NoText(), domain=number % NUM_DOMAINS).id] = []
    steps: list[tuple[Setting, float]] = []
    while engine.has_work:
        all_decode = all(said.values()) and len(engine.scheduler.running) == batch
        setting = next(told) if all_decode else {}
        switches.throw(setting)
        began = clock()
        events = engine.step()
        seconds = clock() - began
        if all_decode:
            steps.append((setting, seconds))
        for event in events:
            if isinstance(event, Delta):
                said[event.sequence_id] += event.token_ids
    return Answers(list(said.values()), steps)


def snapshot_seconds(switches: Switches, batch: int, clock: Callable[[], float], step_s: float) -> float:
    """What one of the five snapshots a second takes more for the choices that were counted since the last one."""
    engine, stats = switches.engine, switches.engine.stats
    num_steps = max(1, round(PUBLISH_EVERY_S / step_s))
    for number in range(batch):
        sampling = SamplingParams(max_tokens=num_steps, ignore_eos=True)
        engine.submit([20 + number, 7, 9], sampling, NoText(), domain=number % NUM_DOMAINS)
    switches.throw({"statistics": True})
    switches.counts.forget()
    while engine.has_work:
        engine.step()
    spent = []
    for stats.counts in (switches.counts, None):
        began = clock()
        stats.snapshot(engine)
        spent.append(clock() - began)
    return spent[0] - spent[1]


def measured(
    switches: Switches, names: Sequence[str], batch: int, threads: int, seconds: float
) -> dict[str, Any]:
    """Effects of the named switches on a step, until their intervals are half of what is claimed or the time is over.

    Raises RuntimeError where a switch changed an answer.
    """
    clock = time.thread_time if threads == 1 else time.process_time
    orders, blocks = settings(names, seed=batch), list[Block]()
    snapshots: list[float] = []
    wanted = answers(switches, batch, itertools.repeat({}), clock).tokens
    began = time.monotonic()
    while not (_is_known(blocks) or (blocks and time.monotonic() - began > seconds)):
        found = answers(switches, batch, itertools.chain.from_iterable(orders), clock)
        _same(found.tokens, wanted, names)
        blocks += _whole_blocks(found.steps, 2 ** len(names))
        if "statistics" in names:
            snapshots.append(snapshot_seconds(switches, batch, clock, _seconds_off(blocks)))
    every = itertools.repeat(dict.fromkeys(names, True))
    _same(answers(switches, batch, every, clock).tokens, wanted, names)
    told: dict[str, Any] = {"ms": _seconds_off(blocks) * 1e3, "sequences": batch}
    told["effects"] = {name: asdict(effect) for name, effect in effects_of(blocks).items()}
    if snapshots:
        told["snapshots"] = statistics.median(snapshots) / PUBLISH_EVERY_S
    return told


def _whole_blocks(steps: list[tuple[Setting, float]], size: int) -> Iterator[Block]:
    for at in range(0, len(steps) - size + 1, size):
        yield steps[at : at + size]


def _seconds_off(blocks: Sequence[Block]) -> float:
    """The median of the steps with every switch off."""
    return statistics.median(
        spent for block in blocks for setting, spent in block if not any(setting.values())
    )


def _is_known(blocks: Sequence[Block]) -> bool:
    effects = effects_of(blocks)
    return len(blocks) >= LEAST_BLOCKS and all(
        one.width <= ENOUGH * CLAIMS[name] for name, one in effects.items()
    )


def _same(tokens: list[list[int]], wanted: list[list[int]], names: Sequence[str]) -> None:
    if tokens != wanted:
        raise RuntimeError(
            f"an answer changed with {', '.join(names)}: what they cost cannot be told from it"
        )


def gate_model(width: int = 576) -> Decoder:
    """A random mixture of eight experts in four layers, whose head is a small part of a step."""
    inner = width * 8 // 3
    spec = ModelSpec.parse(
        {
            "family": "mixtral", "vocab_size": 4096, "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": 4, "num_attention_heads": width // 64, "num_key_value_heads": width // 192, "head_dim": 64,
            "max_position_embeddings": 2048, "tie_word_embeddings": True,
            "moe": {
                "moe_layers": [0, 1, 2, 3], "num_experts": CHOSEN, "top_k": 2, "moe_intermediate_size": inner,
            },
        }
    )  # fmt: skip
    return random_decoder(spec, seed=0, std=0.05, dtype=torch.bfloat16).eval()


def switches_measured(home: Home, threads: int, seconds: float) -> dict[str, Any]:
    """Effects for each model and number of sequences, each within so many seconds."""
    native = library()
    assert native is not None
    native.set_threads(threads)
    found: dict[str, Any] = {"threads": threads, "rows": []}
    for bits in (*MODELS, WORST):
        path = home.models if bits == WORST else model_dir(MODELS[bits], home.models)
        model = gate_model() if bits == WORST else decoder_of(moe_core.load(path, "bfloat16").eval())
        attach(model, threads)
        switches = Switches.of(path, model, threads)
        names = ("gate",) if bits == WORST else tuple(CLAIMS)
        for batch in BATCHES:
            row = measured(switches, names, batch, threads, seconds)
            found["rows"].append({"step": bits if bits == WORST else f"served, {bits} bits", **row})
    return found


def section(found: dict[str, Any]) -> list[str]:
    """The part of the page."""
    lines = [
        f"## What gate, prior and statistics cost a decoding step, {found['threads']} thread(s), processor time", "",
        "| change | step | sequences | ms | change (95 of 100 intervals hold it) | claimed |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, claim in CLAIMS.items():
        for row in found["rows"]:
            if name in row["effects"]:
                told = Effect(**row["effects"][name]).told(claim)
                lines.append(
                    f"| {NAMES[name]} | {row['step']} | {row['sequences']} | {row['ms']:.2f} | {told} | {claim:.0%} |"
                )
    read = [f"{row['snapshots']:.2%}" for row in found["rows"] if "snapshots" in row]
    lines += [
        "",
        "A step is what is served, with its attention and head; four layers with hardly a head stand beside it. "
        "One engine, one place in memory: every combination of the switches in blocks of random order, step by step; "
        "the trimmed mean of pairs of steps that differ in that switch alone, its bootstrapped interval, and equal "
        f"answers whatever was on. Five snapshots a second of what was counted take {', '.join(read)} of a processor "
        "beside that, row by row.",
    ]  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the most for each row (90)")
    options = parser.parse_args()
    found = switches_measured(Home.chosen(options.home), options.threads, options.seconds)
    print(json.dumps(found))
    print("\n".join(section(found)))


if __name__ == "__main__":
    main()
