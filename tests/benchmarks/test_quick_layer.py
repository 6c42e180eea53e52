"""The layer alone in the short comparison: outputs are checked first, ratios are of processor seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from benchmarks import layers
from benchmarks.floors import TILES, VECTORS, below, floors_of, held
from benchmarks.limits import Limits

LIMIT = Limits(1, 10.0, 10.0, {"bf16": 1e12})
# What a layer of one token was measured at, in times of transformers: the median of five runs.
RATIOS = {"16": 3.3, "8": 6.0, "4": 10.3}


class Child:
    """Takes a second on the wall and so much of the processor; `error` is what its output is off."""

    cpu = {"grouped_mm": 0.004, "turnout 16": 0.001, "turnout 8": 0.0005, "turnout 4": 0.00025}
    error, wrong = 0.004, "turnout 16"
    busy: str | None = None

    def __init__(self, name: str, python: object, kind: str, threads: int) -> None:
        self.name, self.kind = name, kind

    def ask(self, **told: Any) -> dict[str, Any]:
        if "shape" in told:
            return {"errors": {"1": self.error if self.kind == self.wrong else 0.0}}
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
    ours = {(row["contestant"], row["metric"]): row for row in rows}
    told = {"turnout bf16", "turnout 8 bits", "turnout 4 bits"}
    assert set(ours) == {(name, f"layer {n}") for name in (*told, "transformers bf16") for n in (1, 128)}
    # Whatever is measured of ours has a floor.
    assert all(f"layer {n}" in VECTORS[name] for name in told for n in (1, 128))
    one = ours["turnout bf16", "layer 1"]
    assert one["ratio"] == pytest.approx(4.0) and one["median"] == pytest.approx(1000.0)
    # Ten megabytes at ten gigabytes a second take as long; in 8 bits with a scale per 768 a little more than half of it.
    assert one["roofline"] == pytest.approx(1.0)
    assert ours["turnout 8 bits", "layer 1"]["roofline"] == pytest.approx(2 * (8 + 16 / 768) / 16)
    assert not below(rows)


@pytest.mark.parametrize("kind", ["turnout 16", "turnout 8", "turnout 4"])
def test_a_layer_that_is_half_as_fast_is_below_its_floor(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """By what this machine takes, in units of transformers' time; each number of bits goes red alone."""
    usual = {"grouped_mm": 1.0} | {f"turnout {bits}": 1 / RATIOS[bits] for bits in RATIOS}
    monkeypatch.setattr(layers, "Child", Child)
    monkeypatch.setattr(layers, "QUICK_TOKENS", [1])
    monkeypatch.setattr(Child, "cpu", usual)
    assert not below(layers.quick_layer(LIMIT, rounds=3))
    monkeypatch.setattr(Child, "cpu", usual | {kind: 2 * usual[kind]})
    name = {"16": "turnout bf16"}.get(kind.split()[1], f"{kind} bits")
    assert set(below(layers.quick_layer(LIMIT, rounds=3))) == {(name, "layer 1")}


def test_a_layer_with_other_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "Child", Child)
    monkeypatch.setattr(Child, "error", 0.1)
    with pytest.raises(RuntimeError, match="turnout bf16: the output of a layer is 10.0% off"):
        layers.quick_layer(LIMIT, rounds=3)
    monkeypatch.setattr(Child, "wrong", "turnout 8")
    with pytest.raises(RuntimeError, match="turnout 8 bits: the output of a layer is 10.0% off"):
        layers.quick_layer(LIMIT, rounds=3)
    # Four bits may be off by so much.
    monkeypatch.setattr(Child, "wrong", "turnout 4")
    assert layers.quick_layer(LIMIT, rounds=3)


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


def test_only_what_is_below_its_floor_twice_is_a_regression(capsys: pytest.CaptureFixture[str]) -> None:
    good = [_ratio("turnout bf16", 1.0), _ratio("turnout 4 bits", 1.0), _ratio("transformers bf16", 0.0)]
    low, other = [_ratio("turnout bf16", 0.99), *good[1:]], [good[0], _ratio("turnout 4 bits", 0.5), good[2]]
    assert _held(good) == (good, 0) and not capsys.readouterr().out
    # A busy minute, and one of another; the second measurement is what is told.
    assert _held(low, good) == (good, 0) and _held(low, other) == (other, 0)
    assert "measured once more" in capsys.readouterr().out
    assert _held(other, other) == (other, 1)
    told = capsys.readouterr().out
    floor = VECTORS["turnout 4 bits"]["decode 1"]
    assert (
        f"REGRESSION: turnout 4 bits, decode 1: {floor / 2:.2f} times transformers, the floor is {floor:.2f}"
        in told
    )


def test_each_kind_of_products_has_floors_of_its_own() -> None:
    assert floors_of("avx512_bf16", frozenset({"avx512f"})) is VECTORS
    assert floors_of("amx", frozenset({"amx_tile"})) is TILES
    assert {name: set(rows) for name, rows in TILES.items()} == {name: set(rows) for name, rows in VECTORS.items()}


def test_where_instructions_are_others_less_of_a_floor_counts() -> None:
    floors = floors_of("avx2", frozenset())
    assert floors == floors_of("avx512_bf16", frozenset({"amx_tile"}))
    assert 0.5 < floors["turnout bf16"]["decode 1"] / VECTORS["turnout bf16"]["decode 1"] < 1.0
    low = [_ratio("turnout bf16", 0.9)]
    assert below(low) and not below(low, floors) and below([_ratio("turnout bf16", 0.5)], floors)


def _ratio(name: str, of_floor: float) -> dict[str, Any]:
    floor = VECTORS.get(name, {}).get("decode 1", 1.0)
    return {"contestant": name, "metric": "decode 1", "ratio": of_floor * floor}


def _held(*measured: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    left = iter(measured)
    return held(lambda: next(left))
