"""Hit rates of expert residency on recorded traces, against LRU and against knowing the future; first token when cold.

    python -m benchmarks.engine.residency [MODEL_DIR] [--experts 16] [--domains 4] [--share 0.25 0.5 0.75]

Without MODEL_DIR the demo's SmolLM2 is upcycled as in `benchmarks.engine.affinity`. Requests of one domain after the
other, as a team's traffic comes in waves, are served by an engine with so large a share of the experts in memory; the
trace of which experts each layer used is replayed under the other rules.

"Cold" is a start whose experts are on the disk and nowhere else: the files are dropped from the page cache before
loading and once more when the engine is ready, and a run of which pages are left in memory is refused. Measured is from the
ready engine to the first token of a request of the first domain: with nothing read beforehand, with the experts of
the domain map, and with those that a log of other requests of that domain used. The three come in turn, in another order
each round; told are medians, quartiles, and the ratio within each round. Beside them stands the rate at which the disk
gives the same files past the page cache (O_DIRECT), for the ratio hangs on it: reading is what is saved, computing is not.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import mmap
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import moe_core
from benchmarks.engine.affinity import smollm2_mixture, split_domains
from benchmarks.engine.speed import NoText
from moe_core.checkpoint.store import load
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta
from moe_core.engine.expert_cache import hit_rate, lru_hit_rate, optimal_hit_rate
from moe_core.engine.residency import ResidentExperts, load_resident
from moe_core.engine.sampling_params import SamplingParams
from moe_core.kernels.cpu.attach import attach
from moe_core.model.decoder import Decoder
from moe_core.spec import ServeSpec

Uses = Sequence[Sequence[int]]
# Of the files, after they were dropped: what a reader of headers brings back.
MOST_LEFT_BYTES = 8 << 20


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
    """Raises RuntimeError when pages stay: something else has the files mapped."""
    left = 0
    for file in sorted(directory.glob("*.safetensors")):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        left += cached_bytes(handle)
        os.close(handle)
    if left > MOST_LEFT_BYTES:
        raise RuntimeError(
            f"{left >> 20} MiB of {directory} stay in the page cache: another process has them mapped"
        )


def cached_bytes(handle: int) -> int:
    """How much of a file is in memory, by mincore."""
    size = os.fstat(handle).st_size
    with mmap.mmap(handle, size, access=mmap.ACCESS_COPY) as memory:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(memory)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        # Released before the mapping is closed.
        del start
        if failed:
            raise OSError(ctypes.get_errno(), "mincore failed")
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def disk_mb_s(directory: Path) -> float:
    """How fast the disk gives a part of the experts past the page cache; a host below may still have it cached."""
    buffer, num_bytes, seconds = mmap.mmap(-1, 8 << 20), 0, 0.0
    for file in sorted(directory.glob("experts-*.safetensors"))[:4]:
        handle, offset = os.open(file, os.O_RDONLY | os.O_DIRECT), 0
        began = time.perf_counter()
        # What is left at the end of a file is no whole block.
        while (num := os.preadv(handle, [buffer], offset)) == len(buffer):
            offset += num
        seconds += time.perf_counter() - began
        num_bytes += offset + num
        os.close(handle)
    return num_bytes / seconds / 1e6


@dataclass(slots=True)
class Cold:
    """One cold first token."""

    seconds: float
    # Of the engine's thread: what reading does not save.
    computing_s: float
    bytes_read: int
    waited_s: float

    @property
    def own_s(self) -> float:
        """Computing and waiting for the disk, without what others took of the processor."""
        return self.computing_s + self.waited_s


def cold_first_token(spec: ServeSpec, capacity: int, *, warmed: bool, uses: Uses = ()) -> Cold:
    """From a loaded engine to the first token of a request of the first domain."""
    routing = spec.routing()
    own = routing.model_copy(update={"domains": routing.domains[:1]})
    drop_from_page_cache(spec.model_dir)
    model, held = load_resident(spec.model_dir, "bfloat16", capacity, own, warmed=warmed, uses=uses)
    engine = Engine(spec, attached(model), residency=held)
    drop_from_page_cache(spec.model_dir)
    engine.submit(list(range(200, 216)), SamplingParams(max_tokens=1, ignore_eos=True), NoText(), domain=0)
    before, bytes_before = dataclasses.replace(held.stats), held.held.bytes_read
    began, computed = time.perf_counter(), time.thread_time()
    while not any(isinstance(event, Delta) for event in engine.step()):
        pass
    seconds, computing_s = time.perf_counter() - began, time.thread_time() - computed
    engine.close()
    read, waited_s = held.held.bytes_read - bytes_before, held.stats.waited_s - before.waited_s
    return Cold(seconds, computing_s, read, waited_s)


def logged_uses(spec: ServeSpec, capacity: int, options: argparse.Namespace) -> Uses:
    """How often each expert was used by other requests of the first domain: what an engine's counts would say."""
    engine, _ = resident(spec, capacity)
    rng = random.Random(11)
    for _ in range(options.logged):
        ids = [rng.randrange(engine.runner.model.spec.vocab_size) for _ in range(options.prompt)]
        engine.submit(ids, SamplingParams(max_tokens=4, ignore_eos=True), NoText(), domain=0)
    while engine.has_work:
        engine.step()
    counts = engine.runner.counts
    assert counts is not None
    uses: list[list[int]] = counts.counts_PNLE.sum((0, 1)).tolist()
    engine.close()
    return uses


def first_tokens(spec: ServeSpec, capacity: int, options: argparse.Namespace) -> None:
    """Measure and tell the three kinds of start."""
    uses = logged_uses(spec, capacity, options)
    kinds: dict[str, dict[str, Any]] = {
        "nothing": {"warmed": False},
        "the domain map": {"warmed": True},
        "a log": {"warmed": True, "uses": uses},
    }
    found: dict[str, list[Cold]] = {name: [] for name in kinds}
    order = list(kinds)
    for _ in range(options.rounds):
        for name in order:
            found[name].append(cold_first_token(spec, capacity, **kinds[name]))
        order = [*order[1:], order[0]]
    print(
        f"     first token when cold, {options.rounds} rounds; the disk gives {disk_mb_s(spec.model_dir):.0f} MB/s:"
    )
    for name, colds in found.items():
        pairs = list(zip(colds, found["nothing"], strict=True))
        print(
            f"       {name:15s} {spread([1000 * cold.seconds for cold in colds], '.0f')} ms on the wall, ratio "
            f"{spread([cold.seconds / base.seconds for cold, base in pairs], '.2f')}; computing and the disk alone "
            f"{spread([1000 * cold.own_s for cold in colds], '.0f')} ms, ratio "
            f"{spread([cold.own_s / base.own_s for cold, base in pairs], '.2f')}; "
            f"{statistics.median(cold.bytes_read for cold in colds) / 1e6:.0f} MB read"
        )


def spread(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def attached(model: Decoder) -> Decoder:
    """With the kernels of an engine whose experts come and go; the whole model too, for its answers to be the same."""
    attach(model.eval(), 1, moves_experts=False)
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
    parser.add_argument("--logged", type=int, default=8, help="requests in the log")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        directory = options.model
        if directory is None:
            directory = moe_core.save(smollm2_mixture(options.experts), Path(folder) / "mixture")
        whole = attached(load(directory, "bfloat16"))
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
            first_tokens(spec, capacity, options)


if __name__ == "__main__":
    main()
