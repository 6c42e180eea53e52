"""The layer alone in the short comparison: outputs are checked first, ratios are of processor seconds."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import compare, layers
from benchmarks.limits import Limits

LIMIT = Limits(1, 10.0, 10.0, {"bf16": 1e12})


class Child:
    """Takes a second on the wall and so much of the processor; `error` is what its output is off."""

    cpu = {"grouped_mm": 0.004, "turnout 16": 0.002}
    error = 0.004

    def __init__(self, name: str, python: object, kind: str, threads: int) -> None:
        self.name, self.kind = name, kind

    def ask(self, **told: Any) -> dict[str, Any]:
        if "shape" in told:
            return {"errors": {"1": self.error if self.kind == "turnout 16" else 0.0}}
        return {"wall": 1.0, "cpu": self.cpu[self.kind], "active_bytes": 1e7}

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
