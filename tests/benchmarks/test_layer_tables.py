"""The tables of the layer alone: which figure of a peer counts, and what is told of the floor."""

from __future__ import annotations

import statistics

from benchmarks import layers
from benchmarks.limits import Limits

LIMIT = Limits(2, 10.0, 10.0, {"bf16": 1e12})
SHAPE = next(iter(layers.SHAPES))


def _row(name: str, *microseconds: float) -> dict:
    times = list(microseconds)
    return {"shape": SHAPE, "tokens": 1, "name": name, "active_bytes": 1e7, "wall": times, "cpu": times}


def _told(*rows: dict) -> dict[str, list[str]]:
    lines = layers.section({"rows": list(rows), "missing": {}}, LIMIT)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| 1 |")]
    return {cell[1].strip("*"): cell for cell in cells}


def test_vllm_counts_by_its_best_round_and_others_by_their_median() -> None:
    ours, slow = _row("Turnout, 16 bits", 400.0), (800.0, 500.0, 900.0)
    assert statistics.median(slow) == 800.0
    by_median = _told(ours, _row("transformers grouped, 16 bits", *slow))
    assert by_median["Turnout, 16 bits"][-1] == "2.00, 2.00"
    by_best = _told(ours, _row("vLLM fused, 16 bits", *slow), _row("transformers grouped, 16 bits", 600.0))
    assert by_best["Turnout, 16 bits"][-1] == "1.25, 1.25"
    assert by_best["vLLM fused, 16 bits"][-1] == "0.62, 0.62"
    assert any(
        "best peer (of vLLM its best round)" in line
        for line in layers.section({"rows": [ours], "missing": {}}, LIMIT)
    )


def test_a_layer_faster_than_the_floor_is_told_so() -> None:
    # Ten megabytes at ten gigabytes a second take a millisecond.
    assert _told(_row("Turnout, 16 bits", 800.0))["Turnout, 16 bits"][-2] == "125%"
    assert (
        layers._quick_row("turnout bf16", _row("turnout bf16, 16 bits", 800.0), 1.0, LIMIT)["roofline"]
        == 1.25
    )
