"""Hit rates of expert residency on recorded traces, against LRU and against knowing the future; first token when cold.

    python -m benchmarks.engine.residency [MODEL_DIR] [--experts 16] [--domains 4] [--share 0.25 0.5 0.75]

Without MODEL_DIR the demo's SmolLM2 is upcycled as in `benchmarks.engine.affinity`. Requests of one domain after the
other, as a team's traffic comes in waves, are served by an engine with so large a share of the experts in memory; the
trace of which experts each layer used is replayed under the other rules. "Cold" drops the files from the page cache
before loading, and measures from the ready engine to the first token, with the domain's experts read beforehand and
without.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import moe_core
from benchmarks.engine.affinity import smollm2_mixture, split_domains
from benchmarks.engine.speed import NoText
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta
from moe_core.engine.expert_cache import hit_rate, lru_hit_rate, optimal_hit_rate
from moe_core.engine.residency import ResidentExperts, load_resident
from moe_core.engine.sampling_params import SamplingParams
from moe_core.kernels.cpu.attach import attach
from moe_core.model.decoder import Decoder
from moe_core.spec import ServeSpec


def serve_spec(model_dir: Path, num_experts: int, options: argparse.Namespace) -> ServeSpec:
    return ServeSpec(
        model_dir=model_dir,
        socket_path=Path("none"),
        domains=split_domains(num_experts, options.domains),
        prior_mode=options.prior,
        max_sequences=2,
        max_wait_s=3600,
    )


def serve(engine: Engine, options: argparse.Namespace) -> tuple[list[list[int]], float]:
    """The answers to waves of requests, domain by domain, and tokens a second."""
    rng, answers, began = random.Random(3), [], time.perf_counter()
    for number in range(options.requests):
        ids = [rng.randrange(engine.runner.model.spec.vocab_size) for _ in range(options.prompt)]
        domain = number * options.domains // options.requests
        params = SamplingParams(max_tokens=options.new, ignore_eos=True)
        engine.submit(ids, params, NoText(), domain=domain)
        answer: list[int] = []
        while engine.has_work:
            answer += [t for event in engine.step() if isinstance(event, Delta) for t in event.token_ids]
        answers.append(answer)
    return answers, sum(map(len, answers)) / (time.perf_counter() - began)


def drop_from_page_cache(directory: Path) -> None:
    for file in directory.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def cold_first_token_ms(spec: ServeSpec, capacity: int, *, warmed: bool) -> float:
    """From a loaded engine to the first token of a request of the first domain."""
    routing = spec.routing()
    own = routing.model_copy(update={"domains": routing.domains[:1]})
    drop_from_page_cache(spec.model_dir)
    model, held = load_resident(spec.model_dir, "bfloat16", capacity, own, warmed=warmed)
    engine = Engine(spec, attached(model), residency=held)
    engine.submit(list(range(200, 216)), SamplingParams(max_tokens=1, ignore_eos=True), NoText(), domain=0)
    began = time.perf_counter()
    while not any(isinstance(event, Delta) for event in engine.step()):
        pass
    engine.close()
    return (time.perf_counter() - began) * 1000


def attached(model: Decoder) -> Decoder:
    attach(model.eval(), 1)
    return model


def resident(spec: ServeSpec, capacity: int) -> tuple[Engine, ResidentExperts]:
    model, held = load_resident(spec.model_dir, "bfloat16", capacity, spec.routing())
    held.trace = []
    return Engine(spec, attached(model), residency=held), held


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--prior", choices=["none", "bias", "mask"], default="bias")
    parser.add_argument("--share", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        directory = options.model
        if directory is None:
            directory = moe_core.save(smollm2_mixture(options.experts), Path(folder) / "mixture")
        whole = attached(moe_core.load(directory, "bfloat16"))
        moe = whole.spec.moe
        assert moe is not None
        num_layers, number = len(moe.moe_layers), len(moe.moe_layers) * moe.num_experts
        spec = serve_spec(directory, moe.num_experts, options)
        wanted, speed = serve(Engine(spec, whole), options)
        print(f"{num_layers} layers of {moe.num_experts} experts; all in memory: {speed:.1f} tok/s")
        del whole
        for share in options.share:
            capacity = max(moe.num_experts, int(share * number))
            engine, held = resident(spec, capacity)
            answers, speed = serve(engine, options)
            assert answers == wanted, "an answer differs from the whole model's"
            trace = held.trace or []
            rules = (
                hit_rate(trace, num_layers, moe.num_experts, capacity),
                lru_hit_rate(trace, capacity),
                optimal_hit_rate(trace, capacity),
            )
            told = held.as_json()
            engine.close()
            print(
                f"{capacity:4d} of {number} resident: {speed:5.1f} tok/s, hits {told['hit_rate']:.3f} "
                f"(awaited {held.stats.awaited / held.stats.uses:.3f}); rule alone {rules[0]:.3f}, LRU {rules[1]:.3f}, "
                f"Belady {rules[2]:.3f}; the same answers"
            )
            rounds = [
                [cold_first_token_ms(spec, capacity, warmed=warmed) for warmed in (False, True)]
                for _ in range(options.rounds)
            ]
            cold = [statistics.median(one) for one in zip(*rounds, strict=True)]
            print(
                f"     first token when cold: {cold[0]:.0f} ms, with the domain's experts read before "
                f"{cold[1]:.0f} ms: {cold[1] / cold[0]:.2f} (median of {options.rounds})"
            )


if __name__ == "__main__":
    main()
