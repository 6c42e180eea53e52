"""What gate, prior and statistics cost is measured within one engine, whose answers are the same whatever is on."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.paired import Effect
from benchmarks.switches import (
    CHOSEN,
    CLAIMS,
    NEW,
    ROWS,
    WORST,
    Switches,
    answers,
    gate_model,
    measured,
    section,
    snapshot_seconds,
)
from moe_core.engine.native_prior import NativePrior
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.cpu.native import library
from moe_core.model.domain_prior import DomainPrior

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels for this processor")


@pytest.fixture
def switches(tmp_path: Path) -> Switches:
    model = gate_model(width=192)
    attach(model, 1)
    return Switches.of(tmp_path, model, 1)


def test_a_switch_is_seen_by_the_next_step_and_changes_no_answer(switches: Switches) -> None:
    off = answers(switches, 2, itertools.repeat({}), time.thread_time)
    assert all(len(answer) == NEW for answer in off.tokens)
    assert len(off.steps) == NEW - 1
    before = int(switches.counts.counts_PNLE[1].sum())
    on = answers(switches, 2, itertools.repeat(dict.fromkeys(CLAIMS, True)), time.thread_time)
    assert on.tokens == off.tokens
    assert int(switches.counts.counts_PNLE[1].sum()) - before == 2 * (NEW - 1) * 4 * 2
    assert before == 0
    native = switches.engine.runner.native
    assert native.prior is switches.prior
    assert [layer.num_experts for layer in native.held.layers] == [ROWS] * 4
    switches.throw({})
    assert native.prior is native.counts is switches.engine.runner.counts is None
    assert [layer.num_experts for layer in native.held.layers] == [CHOSEN] * 4


def test_effects_of_all_three_are_found_from_the_same_steps(switches: Switches) -> None:
    row = measured(switches, tuple(CLAIMS), 2, 1, seconds=0.5)
    assert row["ms"] > 0
    assert set(row["effects"]) == set(CLAIMS)
    for effect in row["effects"].values():
        assert effect["num_blocks"] >= (NEW - 1) // 8
        assert effect["low"] <= effect["share"] <= effect["high"]
    assert "snapshots" in row


def test_a_switch_that_changes_an_answer_is_refused(switches: Switches) -> None:
    strong_NLE = torch.zeros(4, 4, ROWS)
    strong_NLE[:, :, 5:7] = 50.0
    switches.prior = NativePrior.of(DomainPrior(strong_NLE, 2))
    with pytest.raises(RuntimeError, match="an answer changed with prior"):
        measured(switches, ("prior",), 2, 1, seconds=0.1)


def test_snapshots_are_timed_over_what_a_fifth_of_a_second_chooses(switches: Switches) -> None:
    snapshot_seconds(switches, 3, time.thread_time, step_s=0.02)
    # Each sequence chose in its prompt and in nine further steps.
    assert int(switches.counts.counts_PNLE.sum()) == 3 * (3 + 9) * 4 * 2


def test_the_page_shows_intervals_and_says_what_is_not_known() -> None:
    known, wide = Effect(0.002, 0.001, 0.003, 99), Effect(0.002, -0.1, 0.1, 99)
    effects = {"statistics": asdict(known), "prior": asdict(wide), "gate": asdict(known)}
    rows = [
        {"step": "served, 16 bits", "ms": 20.0, "sequences": 1, "effects": effects, "snapshots": 0.0003},
        {"step": WORST, "ms": 3.0, "sequences": 16, "effects": {"gate": asdict(known)}},
    ]
    told = section({"threads": 1, "rows": rows})
    assert "| routing statistics on | served, 16 bits | 1 | 20.00 | +0.20% (+0.10% to +0.30%) | 1% |" in told
    assert any("not known: -10.00% to +10.00% is wider than 1%" in line for line in told)
    assert sum(line.startswith("| a gate of 64") for line in told) == 2
    assert "0.03%" in told[-1]
