"""The layer of experts alone, everybody's in turn, and how near it comes to what memory and arithmetic allow."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.home import ROOT
from benchmarks.limits import Limits
from benchmarks.report import BY_BEST_ROUND

SHAPES = {
    "8 experts, top-2 (576 x 1536)": [576, 1536, 8, 2],
    "64 experts, top-8 (1024 x 384)": [1024, 384, 64, 8],
}
TOKENS = [1, 16, 128, 1024]
ROUNDS = 5
# Between two looks at a process that is to come to rest; how long one is waited for that never does.
REST_S, LONGEST_S = 0.005, 1.0
# What a layer's output may be off, relative to float32: rounding, of activations and of weights.
MOST_ERROR = {"16": 0.02, "8": 0.05, "4": 0.2}


@dataclass(slots=True)
class Child:
    """One implementation in its environment."""

    name: str
    python: Path
    kind: str
    threads: int
    process: subprocess.Popen[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [str(self.python), "-m", "benchmarks.fronts.layer", self.kind, str(self.threads)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def ask(self, **told: Any) -> dict[str, Any]:
        """An answer; raises RuntimeError when there is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(told) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def rest(self) -> None:
        """Return when its threads have come to rest: many spin for milliseconds after a product, on the processor of the
        next one's second thread."""
        until_at_rest(self.process.pid)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def until_at_rest(pid: int) -> None:
    """Wait until no thread of a process runs or wants to, at two looks in a row (Linux; elsewhere two pauses), for
    `LONGEST_S` at most."""
    end, looks = time.monotonic() + LONGEST_S, 0
    while looks < 2 and time.monotonic() < end:
        time.sleep(REST_S)
        looks = 0 if _wants_a_processor(pid) else looks + 1


def _wants_a_processor(pid: int) -> bool:
    """Whether any thread is in state R: those that wait for a processor that others have are, too."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        # A thread may have ended since it was found.
        with suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


QUICK_KINDS = {
    "transformers bf16": ("grouped_mm", "16"),
    **{
        f"turnout {told}": (f"turnout {bits}", bits)
        for told, bits in (("bf16", "16"), ("8 bits", "8"), ("4 bits", "4"))
    },
}
QUICK_SHAPE, QUICK_TOKENS = "8 experts, top-2 (576 x 1536)", [1, 128]


def quick_layer(limit: Limits, rounds: int) -> list[dict[str, Any]]:
    """One layer in 16, 8 and 4 bits against transformers' grouped experts in 16, in processor seconds of one thread.

    Rows as `compare.table` gives them: layers a second, the ratio to transformers, the share of the roofline.

    Raises:
        RuntimeError: when an output is wrong or a process ends.
    """
    children = {
        name: Child(f"{name}, {bits} bits", Path(sys.executable), kind, limit.threads)
        for name, (kind, bits) in QUICK_KINDS.items()
    }
    rows: list[dict[str, Any]] = []
    try:
        for name, child in children.items():
            worst = max(child.ask(shape=SHAPES[QUICK_SHAPE], tokens=QUICK_TOKENS)["errors"].values())
            if not worst <= MOST_ERROR[QUICK_KINDS[name][1]]:
                raise RuntimeError(f"{name}: the output of a layer is {worst:.1%} off")
        for tokens in QUICK_TOKENS:
            taken = _in_turn({child.name: child for child in children.values()}, QUICK_SHAPE, tokens, rounds)
            base = statistics.median(taken[0]["cpu"])
            rows += [_quick_row(name, row, base, limit) for name, row in zip(children, taken, strict=True)]
    finally:
        for child in children.values():
            child.close()
    return rows


def _quick_row(name: str, row: dict[str, Any], base: float, limit: Limits) -> dict[str, Any]:
    middle = statistics.median(row["cpu"])
    found = {
        "contestant": name, "metric": f"layer {row['tokens']}", "median": 1e6 / middle, "least": 1e6 / max(row["cpu"]),
        "most": 1e6 / min(row["cpu"]), "ratio": base / middle,
    }  # fmt: skip
    return found | {"roofline": floor_us(row, limit) / middle}


def layers_measured(pythons: dict[str, Path], threads: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Microseconds of every implementation, shape and number of tokens; `pythons` has the peers' interpreters.

    An implementation whose output is wrong is refused with its error; one that cannot run is told with the reason.
    """
    kinds = {f"Turnout, {bits} bits": (Path(sys.executable), f"turnout {bits}") for bits in (16, 8, 4)}
    kinds |= {f"{name}, 16 bits": (python, KINDS[name]) for name, python in pythons.items()}
    found: dict[str, Any] = {"rows": [], "missing": {}}
    for title, shape in SHAPES.items():
        children = {name: Child(name, python, kind, threads) for name, (python, kind) in kinds.items()}
        try:
            usable = {name: child for name, child in children.items() if _checked(child, shape, found)}
            for tokens in TOKENS:
                found["rows"] += _in_turn(usable, title, tokens, rounds)
        finally:
            for child in children.values():
                child.close()
    return found


KINDS = {"transformers grouped": "grouped_mm", "vLLM fused": "vllm"}


def _checked(child: Child, shape: list[int], found: dict[str, Any]) -> bool:
    bits = child.name.rsplit(",", 1)[1].split()[0]
    try:
        errors = child.ask(shape=shape, tokens=TOKENS)["errors"]
    except RuntimeError as error:
        found["missing"][child.name] = str(error)
        return False
    worst = max(errors.values())
    if not worst <= MOST_ERROR[bits]:
        found["missing"][child.name] = f"refused: its output is {worst:.1%} off"
        return False
    return True


def _in_turn(children: dict[str, Child], title: str, tokens: int, rounds: int) -> list[dict[str, Any]]:
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    for _ in range(rounds + 1):
        for name, child in children.items():
            taken[name].append(child.ask(run=tokens))
            child.rest()
    return [
        {
            "shape": title, "tokens": tokens, "name": name, "active_bytes": times[-1]["active_bytes"],
            **{clock: [one[clock] * 1e6 for one in times[1:]] for clock in ("wall", "cpu")},
        }
        for name, times in taken.items()
    ]  # fmt: skip


def floor_us(row: dict[str, Any], limit: Limits) -> float:
    """What memory or arithmetic allows at best, in microseconds; bits as the name says."""
    bits = int(row["name"].rsplit(",", 1)[1].split()[0])
    # As the models of `benchmarks.models` lie in panels.
    stored = {16: 16.0, 8: 8 + 16 / 768, 4: 4 + 8 / 32 + 16 / 256}[bits]
    width, num_ff, _, top_k = SHAPES[row["shape"]]
    products = limit.best_operations_s.get("int8" if bits < 16 else "bf16", limit.best_operations_s["bf16"])
    reading = row["active_bytes"] * stored / 16 / (limit.best_read_gb_s * 1e9)
    return max(reading, 6 * row["tokens"] * top_k * width * num_ff / products) * 1e6


def section(found: dict[str, Any], limit: Limits) -> list[str]:
    """The tables of the page."""
    lines = [f"## The layer of experts alone, {limit.threads} threads", ""]
    for title in SHAPES:
        lines += [
            f"### {title}",
            "",
            "| tokens | implementation | us, median (least to most) | processor us | floor us |",
        ]
        lines[-1] += (
            " of the floor | times as fast as the best peer (of vLLM its best round): wall, processor |"
        )
        lines += ["|---|---|---|---|---|---|---|"]
        for tokens in TOKENS:
            rows = [row for row in found["rows"] if (row["shape"], row["tokens"]) == (title, tokens)]
            lines += [_line(row, floor_us(row, limit), _best_peer(rows)) for row in rows]
        lines.append("")
    return [*lines, *(f"- {name}: {why}" for name, why in found["missing"].items())]


def _best_peer(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The shortest time of a peer, by clock, medians, of some their best round; nothing where there is none."""
    peers = [row for row in rows if not row["name"].startswith("Turnout")]
    return {
        clock: min((min if row["name"].startswith(BY_BEST_ROUND) else statistics.median)(row[clock]) for row in peers)
        for clock in ("wall", "cpu") if peers
    }  # fmt: skip


def _line(row: dict[str, Any], floor: float, best: dict[str, float]) -> str:
    middle, cpu = statistics.median(row["wall"]), statistics.median(row["cpu"])
    name = f"**{row['name']}**" if row["name"].startswith("Turnout") else row["name"]
    ratio = f"{best['wall'] / middle:.2f}, {best['cpu'] / cpu:.2f}" if best else "–"
    return (
        f"| {row['tokens']:,} | {name} | {middle:,.0f} ({min(row['wall']):,.0f} to {max(row['wall']):,.0f}) | {cpu:,.0f} | "
        f"{floor:,.0f} | {floor / middle:.0%} | {ratio} |"
    )
