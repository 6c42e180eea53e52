"""docs/reference/routers.md tells which gates are tuned and served as the code has it."""

from __future__ import annotations

from tests.moe_core.routers.every_gate import GATES, KINDS
from tests.moe_core.routers.gates_table import PAGE, table, written


def test_the_table_is_that_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert written(text) == table(), "write it anew with: python -m tests.moe_core.routers.gates_table"


def test_every_gate_is_described() -> None:
    text = PAGE.read_text("utf-8")
    assert all(f"| `{kind}` | " in text for kind in KINDS)


def test_a_gate_that_sees_the_batch_says_why_it_is_not_served() -> None:
    for gate in GATES:
        assert (gate.not_served is not None) == gate.sees_the_batch
