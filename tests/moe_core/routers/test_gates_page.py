"""docs/reference/routers.md tells which gates are tuned and served as the code has it."""

from __future__ import annotations

from tests.moe_core.pages import rows
from tests.moe_core.routers.every_gate import GATES, KINDS
from tests.moe_core.routers.gates_table import PAGE, table, written


def test_the_table_is_that_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert written(text) == table(), "write it anew with: python -m tests.moe_core.routers.gates_table"


def test_every_gate_is_described_with_its_proof_and_no_other() -> None:
    table = rows(PAGE.read_text("utf-8"), "| kind | what it does |")
    # A kind may have more rows than one, for values of its fields.
    assert {cells[0].partition(",")[0].strip("`") for cells in table} == set(KINDS)
    for kind, does, source, proof, batch in table:
        assert does and source and proof, kind
        assert batch in ("no", "yes", "in training"), kind


def test_the_table_says_of_each_gate_whether_it_sees_the_batch_when_it_serves() -> None:
    table = rows(PAGE.read_text("utf-8"), "| kind | what it does |")
    said = {cells[0].partition(",")[0].strip("`"): cells[4] == "yes" for cells in table}
    assert said == {kind: gate.sees_the_batch for kind, gate in zip(KINDS, GATES, strict=True)}


def test_a_gate_that_sees_the_batch_says_why_it_is_not_served() -> None:
    for gate in GATES:
        assert (gate.not_served is not None) == gate.sees_the_batch
