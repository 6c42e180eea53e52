"""Every field of what people write (gates, layouts, maps, operations, runs) says what it is, in the schema and in the docs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from moe_core.spec import GateSpec, LayoutSpec, ModelSpec, MoeSpec, RoutingSpec, TuneSpec
from moe_core.spec.operate import OperateSpec
from moe_core.spec.operations import OPERATION, OperationSpec
from tests.moe_core.gates_table import PAGE, gates, rows, table, written


def undescribed(kind: Any) -> list[str]:
    schema = TypeAdapter(kind).json_schema()
    every = {**schema.get("$defs", {}), schema.get("title", "root"): schema}
    return [
        f"{name}.{field}"
        for name, part in every.items()
        for field, inner in part.get("properties", {}).items()
        if not inner.get("description")
    ]


@pytest.mark.parametrize("kind", [GateSpec, LayoutSpec, RoutingSpec, OperationSpec, OperateSpec, TuneSpec])
def test_every_field_has_words(kind: Any) -> None:
    assert undescribed(kind) == []


@pytest.mark.parametrize("kind", [ModelSpec, MoeSpec])
def test_every_field_of_a_model_has_words(kind: Any) -> None:
    assert not [name for name, field in kind.model_fields.items() if not field.description]


def test_the_page_of_routers_has_every_field_of_every_gate() -> None:
    assert written(PAGE.read_text("utf-8")) == table(), (
        "write it anew with: python -m tests.moe_core.gates_table"
    )
    assert {row[0] for row in rows()} == {f"`{gate.model_fields['kind'].default}`" for gate in gates()}
    assert all(row[4] for row in rows())


def test_kinds_of_operations_are_told_apart_in_the_schema() -> None:
    schema = OPERATION.json_schema()
    assert schema["discriminator"]["propertyName"] == "kind"
    assert set(schema["discriminator"]["mapping"]) >= {"upcycle", "compose", "grow", "quantise", "distil"}
