"""How long running answers wait for their next token while prompts arrive, by the size of a prompt's chunk beside them.

    python -m benchmarks.engine.chunks MODEL_DIR [--clients 16] [--prompt 128] [--new 64] [--chunks 32 64 128 256]
        [--long 1024 --every 8]     # each eighth prompt is longer

Clients ask again as soon as they are answered, so that there is always somebody who decodes and mostly somebody who brings
a prompt. Time is the processor's, of the one thread that computes: what others take of a busy machine is not in it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from benchmarks.engine.speed import NoText
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta, Done
from moe_core.engine.loading import build_engine
from moe_core.engine.sampling_params import SamplingParams
from moe_core.spec import ServeSpec


class Clients:
    """Each has one request at a time, the first ones of different lengths so that they do not stay in step."""

    def __init__(self, engine: Engine, options: argparse.Namespace) -> None:
        self.engine, self.options = engine, options
        self.rng = random.Random(1)
        self.asked_at: dict[int, float] = {}
        self.told_at: dict[int, float] = {}
        self.first_s: list[float] = []
        self.first_of_long_s: list[float] = []
        self.num_asked = 0
        self.is_long: set[int] = set()
        self.between_s: list[float] = []
        for number in range(options.clients):
            self.ask(1 + options.new * (number + 1) // options.clients)

    def ask(self, new: int) -> None:
        """Send a request now."""
        vocab_size = self.engine.runner.model.spec.vocab_size
        self.num_asked += 1
        is_long = bool(self.options.every) and self.num_asked % self.options.every == 0
        length = self.options.long if is_long else self.options.prompt
        ids = [self.rng.randrange(10, vocab_size) for _ in range(length)]
        params = SamplingParams(max_tokens=new, ignore_eos=True)
        number = self.engine.submit(ids, params, NoText()).id
        self.asked_at[number] = time.thread_time()
        if is_long:
            self.is_long.add(number)

    def step(self) -> int:
        """One step of the engine, and what its clients make of it; the tokens that came."""
        events, num_tokens = self.engine.step(), 0
        now = time.thread_time()
        for event in events:
            if isinstance(event, Delta):
                num_tokens += len(event.token_ids)
                last = self.told_at.get(event.sequence_id)
                if last is None:
                    firsts = self.first_of_long_s if event.sequence_id in self.is_long else self.first_s
                    firsts.append(now - self.asked_at[event.sequence_id])
                else:
                    self.between_s.append(now - last)
                self.told_at[event.sequence_id] = now
            elif isinstance(event, Done):
                self.ask(self.options.new)
        return num_tokens


def measure(
    engine: Engine, chunk: int, options: argparse.Namespace
) -> tuple[float, list[float], list[float], list[float]]:
    """Tokens a second, seconds to first tokens, between tokens, and to first tokens of long prompts, once all run."""
    engine.scheduler.max_chunk_tokens = chunk
    clients = Clients(engine, options)
    while len(clients.first_s) + len(clients.first_of_long_s) < options.clients:
        clients.step()
    clients.first_s.clear()
    clients.first_of_long_s.clear()
    clients.between_s.clear()
    began = time.thread_time()
    num_tokens = sum(clients.step() for _ in range(options.steps))
    speed = num_tokens / (time.thread_time() - began)
    engine.cancel(*clients.asked_at)
    while engine.has_work:
        engine.step()
    engine.pool.forget_all()
    return speed, clients.first_s, clients.between_s, clients.first_of_long_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--long", type=int, default=1024)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", nargs="+", type=int, default=[32, 64, 128, 256])
    options = parser.parse_args()
    spec = ServeSpec(
        model_dir=options.model,
        socket_path=Path("none"),
        max_sequences=options.clients,
        max_wait_s=3600,
        ngram_tokens=0,
    )
    engine, _ = build_engine(spec, lambda state: None)
    found: dict[int, list[tuple[float, list[float], list[float], list[float]]]] = {
        chunk: [] for chunk in options.chunks
    }
    for _ in range(options.rounds):
        for chunk in options.chunks:
            found[chunk].append(measure(engine, chunk, options))
    for chunk, rounds in found.items():
        first = sorted(one for _, firsts, _, _ in rounds for one in firsts)
        between = sorted(one for _, _, betweens, _ in rounds for one in betweens)
        of_long = sorted(one for _, _, _, longs in rounds for one in longs)
        print(
            f"chunks of {chunk:3d}: {statistics.median(speed for speed, *_ in rounds):6.1f} tokens a core-second; next "
            f"token {1000 * statistics.median(between):.0f} ms, 95 % within {1000 * at(between, 0.95):.0f}, 99 % within "
            f"{1000 * at(between, 0.99):.0f}; first token {1000 * statistics.median(first):.0f} ms, 95 % within "
            f"{1000 * at(first, 0.95):.0f}"
            + (f"; of long prompts {1000 * statistics.median(of_long):.0f} ms" if of_long else "")
        )


def at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    main()
