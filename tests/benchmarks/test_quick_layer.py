"""The layer alone in the short comparison: outputs are checked first, ratios are of processor seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from benchmarks import compare, layers
from benchmarks.limits import Limits

LIMIT = Limits(1, 10.0, 10.0, {"bf16": 1e12})


class Child:
    """Takes a second on the wall and so much of the processor; `error` is what its output is off."""

    cpu = {"grouped_mm": 0.004, "turnout 16": 0.002}
    error = 0.004
    busy: str | None = None

    def __init__(self, name: str, python: object, kind: str, threads: int) -> None:
        self.name, self.kind = name, kind

    def ask(self, **told: Any) -> dict[str, Any]:
        if "shape" in told:
            return {"errors": {"1": self.error if self.kind == "turnout 16" else 0.0}}
        assert Child.busy is None, f"{Child.busy} still takes the processor"
        Child.busy = self.name
        return {"wall": 1.0, "cpu": self.cpu[self.kind], "active_bytes": 1e7}

    def rest(self) -> None:
        Child.busy = None

    def close(self) -> None:
        """Nothing runs."""


def test_ratios_and_shares_are_of_processor_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "Child", Child)
    rows = layers.quick_layer(LIMIT, rounds=3)
    ours = {row["metric"]: row for row in rows if row["contestant"] == "turnout bf16"}
    assert set(ours) == {"layer 1", "layer 128"} <= set(compare.FLOORS)
    assert ours["layer 1"]["ratio"] == pytest.approx(2.0) and ours["layer 1"]["median"] == pytest.approx(
        500.0
    )
    # Ten megabytes at ten gigabytes a second are half of what it took.
    assert ours["layer 1"]["roofline"] == pytest.approx(0.5)
    assert compare.below_floors(rows) == 0
    monkeypatch.setattr(Child, "cpu", {"grouped_mm": 0.001, "turnout 16": 0.002})
    assert compare.below_floors(layers.quick_layer(LIMIT, rounds=3)) == 1


def test_a_layer_with_other_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "Child", Child)
    monkeypatch.setattr(Child, "error", 0.5)
    with pytest.raises(RuntimeError, match="turnout bf16: the output of a layer is 50.0% off"):
        layers.quick_layer(LIMIT, rounds=3)


SPINS = """
import sys, threading, time
def spin():
    while time.thread_time() < 0.2:
        pass
threads = [threading.Thread(target=spin) for _ in range(2)]
for thread in threads:
    thread.start()
print("answer", flush=True)
threads[0].join(), threads[1].join()
print(time.monotonic(), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the states of threads from /proc")
def test_the_next_one_waits_until_threads_that_spin_are_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LONGEST_S", 60.0)
    with subprocess.Popen(
        [sys.executable, "-c", SPINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "answer\n"
        layers.until_at_rest(child.pid)
        at_rest = time.monotonic()
        # The clock is the machine's: the last thread had spun its share before we went on.
        assert float(child.stdout.readline()) < at_rest


def test_one_that_never_rests_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LONGEST_S", 0.05)
    monkeypatch.setattr(layers, "_wants_a_processor", lambda pid: True)
    began = time.monotonic()
    layers.until_at_rest(0)
    assert time.monotonic() - began >= 0.05
