"""docs/reference/jobs.md has every field of every operation, and no other, with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from moe_core.spec.base import Spec
from moe_core.spec.operations import OperationSpec

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "jobs.md"
UNION, *_ = get_args(OperationSpec)
KINDS: dict[str, type[Spec]] = {kind.model_fields["kind"].default: kind for kind in get_args(UNION)}
# What a request has beside the operation.
OF_THE_REQUEST = {"model_version", "others"}


def row(kind: str) -> str:
    """What the page says of the fields of an operation."""
    (cells,) = re.findall(rf"(?m)^\| `{kind}` \|(.*)\|[^|]*\|$", PAGE.read_text("utf-8"))
    return str(cells)


def values_in(schema: Any) -> set[str]:
    """The texts that fields may have, and the names of fields of parts."""
    inner = {name for part in schema.get("$defs", {}).values() for name in part["properties"]}
    return inner | set(
        re.findall(r"'(\w+)'", str([f.get("enum", ()) for f in schema["properties"].values()]))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_fields_of_the_page_are_those_of_the_specification(kind: str) -> None:
    named = set(re.findall(r"`(\w+)`", row(kind)))
    fields = KINDS[kind].model_fields.keys() - {"kind"}
    assert fields - named == set(), "fields that the page lacks"
    assert named - fields - values_in(KINDS[kind].model_json_schema()) - OF_THE_REQUEST == set()


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_the_page_are_the_defaults(kind: str) -> None:
    said = re.findall(r"`(\w+)` (-?\d[\d.e-]*)(?=[ ,|])", row(kind))
    own = KINDS[kind].model_fields
    for name, value in said:
        if name in own:
            assert float(value) == own[name].default, name


def test_the_page_has_a_row_for_each_operation() -> None:
    page = PAGE.read_text("utf-8")
    table = page[page.index("| `kind` | fields (with defaults)") :].partition("\n\n")[0]
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", table)) - {"kind"} == set(KINDS)
