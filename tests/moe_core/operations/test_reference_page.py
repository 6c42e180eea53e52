"""docs/reference/operations.md has a row for each operation, and no other, and names functions that there are."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from moe_core import operations
from moe_core.spec.operations import MeasureSpec
from tests.moe_core.pages import rows
from tests.moe_core.test_operations_page import KINDS

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "operations.md").read_text("utf-8")
TABLE = rows(PAGE, "| kind | function |")
OF_A_KIND = pytest.mark.parametrize("cells", TABLE, ids=lambda cells: cells[0])
FUNCTIONS = {name for name in operations.__all__ if inspect.isfunction(getattr(operations, name))}


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_the_table_has_a_row_for_each_kind_and_no_other() -> None:
    assert sorted(cells[0] for cells in TABLE) == sorted(f"`{kind}`" for kind in KINDS)


def test_every_public_function_is_in_one_row() -> None:
    named = [name for cells in TABLE for name in quoted(cells[1])]
    assert sorted(named) == sorted(FUNCTIONS)


@OF_A_KIND
def test_the_function_takes_the_specification_of_its_kind(cells: list[str]) -> None:
    kind, function = KINDS[quoted(cells[0])[0]], getattr(operations, quoted(cells[1])[-1])
    taken = set(get_type_hints(function).values())
    # Measuring has nothing to choose.
    assert (kind in taken) == (kind is not MeasureSpec), taken


@OF_A_KIND
def test_each_operation_says_what_it_does_and_what_it_was_held_to(cells: list[str]) -> None:
    assert len(cells) == 6
    assert cells[2] and cells[4]


def test_whatever_keeps_experts_says_what_a_mapped_one_becomes() -> None:
    named = [name for cells in rows(PAGE, "| operation | a mapped expert becomes |") for name in quoted(cells[0])]  # fmt: skip
    # A dense model has no experts, and measuring makes no model.
    assert sorted([*named, "upcycle", "measure"]) == sorted(KINDS)
