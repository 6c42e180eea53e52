"""Turnout against transformers in process, round by round in turn, with the roofline and the share of it.

    ./turnout bench compare [--rounds N] [--threads N] [--json PATH] [--page PATH]   the benchmark models, in process
    ./turnout bench --quick                                                          a small random mixture, 3 minutes

The roofline is measured first. A contestant whose tokens are not the reference's (or as good as its best, within the
rounding of bfloat16) is refused, and the run fails. `--quick` fails when a ratio to transformers falls below its floor
twice; it counts processor seconds on one thread, which a busy machine disturbs far less than the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.bounds import active_bytes
from benchmarks.floors import floors_of, held
from benchmarks.home import Home
from benchmarks.layers import quick_layer
from benchmarks.limits import Clock, Limits, cpu_flags, measure, memory_read, pooled
from benchmarks.models import model_dir
from moe_core.checkpoint.store import read_spec
from moe_core.kernels.cpu.native import Library, library
from standalone.stages import NOT_RUN, UNAVAILABLE

ROOT = Path(__file__).parents[1]
# How far below the reference's best a token may be, as a share of the spread of its logits.
MOST_GAP = 0.02
# Behind routers at random, which choose other experts for what is only rounded in another order: in 16 bits (0.056 seen,
# where both sides' tokens were those of every instruction set), and of inputs in 8 bits; any token lacks a half.
MOST_GAP_AT_RANDOM = {"quick": 0.1, "quick-q8r": 0.35, "quick-q4s": 0.35}
CACHED_BYTES = 100e6


@dataclass(slots=True)
class Entry:
    """A contestant in its process, and what it did."""

    name: str
    kind: str
    model: Path
    threads: int
    process: subprocess.Popen[str] = field(init=False, repr=False)
    loaded: dict[str, Any] = field(init=False)
    seconds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestant", self.kind, str(self.model), str(self.threads)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.loaded = self._reply()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; raises RuntimeError when the process has died."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    prompt: int
    decode_prompt: int
    new: int
    batches: tuple[int, ...]
    rounds: int


FULL, QUICK = Size(512, 128, 65, (1, 8), 5), Size(256, 32, 17, (1,), 3)


def prompts(count: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """Distinct random prompts."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, vocab, (length,), generator=generator).tolist() for _ in range(count)]


def check(entry: Entry, reference: Entry, vocab: int, size: Size) -> float:
    """The largest gap of an answer's tokens to the reference's best; raises RuntimeError when it is too large."""
    most = MOST_GAP_AT_RANDOM.get(entry.model.name, MOST_GAP)
    prompt = prompts(1, size.decode_prompt, vocab, 77)[0]
    tokens = entry.ask(do="decode", prompts=[prompt], new=size.new)["answers"][0]
    gap = float(reference.ask(do="judge", prompt=prompt, answer=tokens)["gap"])
    if not gap <= most:
        raise RuntimeError(
            f"{entry.name}: a token is {gap:.1%} of the logits' spread below the reference's best"
        )
    return gap


def measure_round(entry: Entry, vocab: int, size: Size, number: int) -> None:
    """Every metric of one contestant once."""
    prompt = prompts(1, size.prompt, vocab, 1000 + number)[0]
    entry.seconds.setdefault("prefill", []).append(
        {**entry.ask(do="prefill", prompt=prompt), "tokens": size.prompt}
    )
    for batch in size.batches:
        asked = prompts(batch, size.decode_prompt, vocab, 2000 + number)
        entry.seconds.setdefault(f"decode {batch}", []).append(
            {k: v for k, v in entry.ask(do="decode", prompts=asked, new=size.new).items() if k != "answers"}
        )


def rates(entry: Entry, metric: str, clock: str) -> list[float]:
    """Tokens a second of each round after the first, which warms up."""
    return [taken["tokens"] / taken[clock] for taken in entry.seconds[metric][1:]]


def checked(entries: list[Entry], references: dict[str, Entry], size: Size) -> dict[str, float]:
    """The gap of each contestant to its reference; raises RuntimeError when one is too large."""
    return {
        entry.name: check(entry, references[entry.name], read_spec(entry.model).vocab_size, size)
        for entry in entries
    }


def measure_rounds(entries: list[Entry], size: Size) -> None:
    """All rounds, and one before them that warms up; what was measured before is forgotten."""
    for entry in entries:
        entry.seconds.clear()
    for number in range(size.rounds + 1):
        for entry in entries:
            measure_round(entry, read_spec(entry.model).vocab_size, size, number)


@dataclass(slots=True)
class Machine:
    """What this machine reaches on one thread and on two, all that was measured of it together."""

    native: Library
    repeats: int
    clock: Clock
    measured: dict[int, list[Limits]] = field(default_factory=dict)

    def measure(self) -> None:
        """Measure it once more."""
        for threads in (1, 2):
            found = measure(self.native, threads, self.repeats, self.clock)
            self.measured.setdefault(threads, []).append(found)

    @property
    def limits(self) -> list[Limits]:
        """By threads."""
        return [pooled(measured) for measured in self.measured.values()]


def foreign(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The share of the machine that was busy, ours and others', between two readings."""
    return (after[1] - before[1]) / max(after[0] - before[0], 1.0)


def reading() -> tuple[float, float]:
    """All processors' ticks, and those that were not idle."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(value) for value in file.readline().split()[1:9]]
    return float(sum(ticks)), float(sum(ticks) - ticks[3] - ticks[4])


def table(entries: list[Entry], peer: Entry, limits: list[Limits], clock: str) -> list[dict[str, Any]]:
    """One row for each contestant and metric."""
    rows = []
    bandwidth = max(limit.best_read_gb_s for limit in limits if limit.threads <= peer.threads)
    for entry in entries:
        for metric in entry.seconds:
            found, base = rates(entry, metric, clock), rates(peer, metric, clock)
            row: dict[str, Any] = {
                "contestant": entry.name, "metric": metric, "median": statistics.median(found), "least": min(found),
                "most": max(found), "ratio": statistics.median(found) / statistics.median(base),
            }  # fmt: skip
            # Weights that the last cache could hold are not bound by memory.
            if metric == "decode 1" and active_bytes(entry.model) > CACHED_BYTES:
                row["roofline"] = row["median"] * active_bytes(entry.model) / 1e9 / bandwidth
            rows.append(row)
    return rows


def page(
    rows: list[dict[str, Any]], limits: list[Limits], gaps: dict[str, float], entries: list[Entry], about: str
) -> str:
    """The result as Markdown."""
    lines = [
        "# Benchmark",
        "",
        about,
        "",
        "| threads | memory read GB/s, median (best), before and after | which memory | bf16 GFLOP/s |",
        "|---|---|---|---|",
    ]
    for limit in limits:
        bf16 = limit.best_operations_s["bf16"] / 1e9
        read = f"{limit.read_gb_s:.1f} ({limit.best_read_gb_s:.1f})"
        lines.append(f"| {limit.threads} | {read} | {memory_read(limit.huge_share)} | {bf16:.0f} |")
    lines += [
        "",
        "| contestant | metric | tokens (or layers of so many) a second, median (least to most) | ratio to transformers | "
        "share of the roofline |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        share = f"{r['roofline']:.0%}" if "roofline" in r else ""
        rate = f"{r['median']:.1f} ({r['least']:.1f} to {r['most']:.1f})"
        lines.append(f"| {r['contestant']} | {r['metric']} | {rate} | {r['ratio']:.2f} | {share} |")
    lines += [
        "",
        "| contestant | load s | memory GB | largest gap to the reference's best token |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {e.name} | {e.loaded['load']['wall']:.1f} | {e.loaded['bytes'] / 1e9:.2f} | {gaps[e.name]:.2%} |"
        for e in entries
    ]
    return "\n".join(lines) + "\n"


def contestants(home: Path, threads: int, *, quick: bool) -> tuple[list[Entry], dict[str, Entry]]:
    """Who is measured (the peer first), and the reference that judges each."""
    base = model_dir("quick" if quick else "smol-moe-8x", home)
    peer = Entry("transformers bf16", "transformers", base, threads)
    entries = [peer, Entry("turnout bf16", "turnout", base, threads)]
    references = {entry.name: peer for entry in entries}
    for suffix, label in (("q8r", "turnout 8 bits"), ("q4s", "turnout 4 bits")):
        packed = model_dir(f"{base.name}-{suffix}", home)
        entries.append(Entry(label, "turnout", packed, threads))
        references[label] = Entry(f"{label}, reference", "torch", packed, threads)
    return entries, references


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./turnout bench compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small mixture, one layer alone, and one thread; fails below the floors",
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, help="default: 2, with --quick 1")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], help="seconds on the wall, or (--quick) of the processor"
    )
    parser.add_argument("--home", type=Path, help="where the models are kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    native = library()
    if native is None:
        print(f"{NOT_RUN}the CPU kernels are not compiled on this machine: nothing was measured")
        return UNAVAILABLE
    size = QUICK if options.quick else FULL
    size = Size(size.prompt, size.decode_prompt, size.new, size.batches, options.rounds or size.rounds)
    threads = options.threads or (1 if options.quick else 2)
    clock: Clock = options.clock or ("cpu" if options.quick else "wall")
    began, before = time.monotonic(), reading()
    machine = Machine(native, 3 if options.quick else 7, clock)
    machine.measure()
    entries, references = contestants(Home.chosen(options.home).models, threads, quick=options.quick)

    def measured() -> list[dict[str, Any]]:
        measure_rounds(entries, size)
        alone = options.quick and threads == 1 and clock == "cpu"
        layer = quick_layer(machine.limits[0], max(size.rounds, 9)) if alone else []
        machine.measure()
        return table(entries, entries[0], machine.limits, clock) + layer

    try:
        gaps = checked(entries, references, size)
        rows, status = (
            held(measured, floors_of(native.isa, cpu_flags())) if options.quick else (measured(), 0)
        )
    except RuntimeError as error:
        print(f"refused: {error}")
        return 1
    finally:
        for entry in {id(e): e for e in (*entries, *references.values())}.values():
            entry.close()
    about = (
        f"{native.isa}, {threads} threads, {size.rounds} rounds in turn, {clock} seconds; the machine was "
        f"{foreign(before, reading()):.0%} busy, load {os.getloadavg()[0]:.1f}; {time.monotonic() - began:.0f} s in all."
    )
    text = page(rows, machine.limits, gaps, entries, about)
    print(text)
    if options.page:
        options.page.write_text(text)
    if options.json:
        found = {"about": about, "limits": [asdict(x) for x in machine.limits], "rows": rows, "gaps": gaps}
        options.json.write_text(json.dumps(found, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
