"""What a comparison with peers has found out so far, and how it is told while it goes on."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.home import Home
from benchmarks.judge import Verdict
from benchmarks.limits import Limits, measure, pooled
from benchmarks.visits import TRIAL, Amount, Contestant, Sample
from moe_core.kernels.cpu.native import library


@dataclass(slots=True)
class Run:
    """Everything that is found out."""

    home: Home
    minutes: float
    amount: Amount
    began: float = field(default_factory=time.monotonic)
    # By threads, each time that they were measured.
    measured: dict[int, list[Limits]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    contestants: dict[str, dict[str, str]] = field(default_factory=dict)
    visit_s: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    # The engines that judge what gateways answer, also where --only names none of them.
    engines: dict[str, Contestant] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    has_rounds: bool = True

    @property
    def limits(self) -> list[Limits]:
        """The machine's limits, by threads: all that was measured so far, together."""
        return [pooled(measured) for measured in self.measured.values()]

    def measure_limits(self) -> None:
        """Measure the machine's limits once more, on one thread and on two; nobody else is to be at work."""
        native = library()
        assert native is not None
        for threads in (1, 2):
            found = measure(native, threads, 5, "wall")
            self.measured.setdefault(threads, []).append(found)
            say(
                f"  memory read by {threads} threads: {found.read_gb_s:.1f} GB/s, at best {found.best_read_gb_s:.1f}"
            )

    @property
    def left_s(self) -> float:
        """What is left of the time."""
        return self.minutes * 60 - (time.monotonic() - self.began)

    def note(self, sample: Sample) -> None:
        """Keep a sample and tell it."""
        self.samples.append(sample)
        rate = sample.tokens / sample.wall if sample.wall else 0.0
        say(
            f"  {sample.contestant:18s} {sample.metric:20s} {sample.threads} threads  {rate:8.1f}/s wall "
            f"{sample.tokens / max(sample.cpu, 1e-9):8.1f}/s cpu  others {sample.foreign:.0%}"
        )

    def took(self, name: str, metric: str) -> float:
        """How long a metric took last."""
        return next(
            (s.wall for s in reversed(self.samples) if s.contestant == name and s.metric == metric), 0.0
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "machine": machine(), "trial": self.amount == TRIAL, "seconds": time.monotonic() - self.began,
            "limits": [asdict(one) for one in self.limits], "contestants": self.contestants,
            "missing": self.missing, "memory": self.memory, "extra": self.extra,
            "verdicts": {name: asdict(one) for name, one in self.verdicts.items()},
            "samples": [one.as_json() for one in self.samples],
        }  # fmt: skip


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, flush=True)


def machine() -> dict[str, Any]:
    """What this machine is."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    native = library()
    return {
        "processor": model, "cores": os.cpu_count(), "isa": native.isa if native else "none",
        "load": os.getloadavg()[0], "when": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip
