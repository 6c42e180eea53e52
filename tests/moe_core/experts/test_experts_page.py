"""docs/reference/experts.md has every kind of expert, and no other, with what it is made of and where it comes from."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest

from moe_core.spec.expert_kinds import ExpertKind, PlainActivation
from tests.moe_core.pages import rows

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "experts.md").read_text("utf-8")
KINDS: dict[str, Any] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(ExpertKind)[0])
}
TABLE = rows(PAGE, "| kind | what it computes |")
WIDTH, HIDDEN = 7, 5


def values(said: str, hidden: int, width: int) -> tuple[int, int]:
    """How many values the page says that an expert has, without and with what stands in brackets."""
    plain, _, biases = said.partition("(")
    numbers = {"F": width, "D": hidden}

    def total(terms: str) -> int:
        found = 0
        for term in terms.strip(" )+").split("+"):
            product = 1
            for factor in term.strip().split("·"):
                product *= numbers[factor] if factor in numbers else int(factor)
            found += product
        return found

    return total(plain), total(plain) + (total(biases) if biases else 0)


def test_the_table_has_a_row_for_each_kind_and_no_other() -> None:
    assert [cells[0] for cells in TABLE] == [f"`{kind}`" for kind in KINDS]


@pytest.mark.parametrize("cells", TABLE, ids=lambda cells: cells[0])
def test_each_kind_has_a_source_and_an_oracle(cells: list[str]) -> None:
    _, computes, _, source, oracle = cells
    assert computes and oracle
    assert re.search(r"arXiv \d{4}\.\d{5}|section \d", source), source
    for path in re.findall(r"`(tests/[\w/]+\.py)`", oracle):
        assert (Path(__file__).parents[3] / path).is_file(), path


@pytest.mark.parametrize("cells", TABLE, ids=lambda cells: cells[0])
def test_the_values_of_each_kind_are_those_that_it_packs(cells: list[str]) -> None:
    kind = KINDS[cells[0].strip("`")]
    size = {"width": WIDTH} if "width" in kind.model_fields else {}
    without = sum(matrix.numel for matrix in kind(**size).matrices(HIDDEN))
    biased = {"bias": True} if "bias" in kind.model_fields else {}
    with_biases = sum(matrix.numel for matrix in kind(**size, **biased).matrices(HIDDEN))
    assert values(cells[2], HIDDEN, WIDTH) == (without, with_biases)


@pytest.mark.parametrize("kind", ["swiglu", "mlp"])
def test_the_activations_are_those_that_the_specification_takes(kind: str) -> None:
    (computes,) = [cells[1] for cells in TABLE if cells[0] == f"`{kind}`"]
    named = set(re.findall(r"`(\w+)`", computes)) - KINDS[kind].model_fields.keys()
    assert named == set(get_args(KINDS[kind].model_fields["activation"].annotation))
    assert set(get_args(PlainActivation)) >= named


def test_the_modules_that_it_names_are_there() -> None:
    named = set(re.findall(r"`(?:moe_core\.)?((?:kernels|spec|routers)\.[a-z0-9_.]+)`", PAGE))
    assert "kernels.mixed_reference" in named
    assert [name for name in named if find_spec(f"moe_core.{name}") is None] == []


def test_the_example_shows_every_kind() -> None:
    shown = set(re.findall(r'"kind": "(\w+)"', PAGE))
    assert shown == set(KINDS)
