"""What gate, prior and statistics cost is measured on engines that answer alike where only costs differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.switches import WEAK_PRIOR, engine_of, gate_model, look_at, step_seconds
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.cpu.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels for this processor")


def test_statistics_and_a_prior_as_good_as_none_change_no_answer(tmp_path: Path) -> None:
    model = gate_model(64, 64, width=192)
    attach(model, 1)
    plain, weak, silent = (
        engine_of(tmp_path, model, 1),
        engine_of(tmp_path, model, 1, prior=WEAK_PRIOR),
        engine_of(tmp_path, model, 1, counts=False),
    )
    told = [step_seconds(one, 2, 0, domain=one is weak) for one in (plain, weak, silent)]
    assert all(seconds > 0 for seconds, _ in told)
    assert all(answers == told[0][1] for _, answers in told)
    assert all(len(answer) > 1 for answer in told[0][1])


def test_a_gate_that_looks_at_fewer_rows_misses_experts(tmp_path: Path) -> None:
    """And so is what the bench takes for a small gate."""
    model = gate_model(64, 64, width=192)
    attach(model, 1)
    few, many = engine_of(tmp_path, model, 1), engine_of(tmp_path, model, 1)
    look_at(few, 2)
    one, other = (step_seconds(each, 2, 0, domain=False)[1] for each in (few, many))
    assert one != other
