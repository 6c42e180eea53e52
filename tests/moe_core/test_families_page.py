"""docs/reference/families.md tells what the code does, and docs/how-to/add-a-family.md shows the code that is there."""

from __future__ import annotations

import re

import pytest

from moe_core.model.families import FAMILIES
from tests.moe_core.families_table import PAGE, SEQ2SEQ, row, row_of_seq2seq, table, written

ROOT = PAGE.parents[2]
SHOWN = re.compile(r"<!-- (moe_core/\S+\.py) -->\n```python\n(.*?)```", re.DOTALL)


def rows() -> list[list[str]]:
    lines = written(PAGE.read_text("utf-8")).splitlines()
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def test_the_table_has_a_row_for_each_family_and_no_other() -> None:
    assert [cells[0].split("`")[1] for cells in rows()[2:]] == [*FAMILIES, *SEQ2SEQ]


@pytest.mark.parametrize("family", [*FAMILIES, *SEQ2SEQ])
def test_every_tick_is_earned_and_every_dash_is_a_refusal(family: str) -> None:
    (stands,) = [cells for cells in rows()[2:] if cells[0].startswith(f"`{family}`")]
    found = row_of_seq2seq(family) if family in SEQ2SEQ else row(FAMILIES[family])
    assert found == stands, "write it anew with: python -m tests.moe_core.families_table"


def test_what_is_done_and_wrong_gets_no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.moe_core import families_table

    monkeypatch.setattr(families_table, "COLUMNS", {"run": lambda model: False})
    monkeypatch.setattr(families_table, "FAMILIES", {"mixtral": FAMILIES["mixtral"]})
    monkeypatch.setattr(families_table, "SEQ2SEQ", {})
    with pytest.raises(AssertionError, match="of mixtral is done, and wrong"):
        table()


def test_the_code_in_the_how_to_is_the_code_in_the_files() -> None:
    shown = SHOWN.findall((ROOT / "docs/how-to/add-a-family.md").read_text("utf-8"))
    assert [file for file, _ in shown] == [
        "moe_core/model/families/qwen2_moe.py",
        "moe_core/model/families/mixtral.py",
    ]
    for file, code in shown:
        assert code in (ROOT / file).read_text("utf-8"), f"{file} has changed; show it in the page as it is"
