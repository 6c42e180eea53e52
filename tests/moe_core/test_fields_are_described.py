"""Every field of what people write (gates, layouts, maps, operations, runs) says what it is, in the schema and in the docs."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from pydantic import TypeAdapter

import moe_core.spec
from moe_core.spec import GateSpec, LayoutSpec, ModelSpec, RoutingSpec, ServeSpec, TuneSpec
from moe_core.spec.attention import AttentionSpec, MlaSpec, RopeSpec, SlidingSpec
from moe_core.spec.base import Spec
from moe_core.spec.gate import SoftmaxTopk
from moe_core.spec.operations import OPERATION, OperationSpec
from moe_core.spec.seq2seq import Seq2SeqSpec
from moe_core.spec.twins import TwinsSpec
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


def every_spec() -> set[type[Spec]]:
    """Every specification of `moe_core.spec`, whether anybody imports it or not."""
    for module in iter_modules(moe_core.spec.__path__):
        import_module(f"moe_core.spec.{module.name}")
    found, new = set[type[Spec]](), set(Spec.__subclasses__())
    while new:
        found |= new
        new = {kind for each in new for kind in each.__subclasses__()} - found
    return {kind for kind in found if kind.__module__.startswith("moe_core.spec.")}


@pytest.mark.parametrize("kind", [GateSpec, OperationSpec])
def test_every_field_of_a_union_has_words(kind: Any) -> None:
    assert undescribed(kind) == []


@pytest.mark.parametrize("kind", sorted(every_spec(), key=repr))
def test_every_field_of_every_specification_has_words(kind: type[Spec]) -> None:
    assert undescribed(kind) == []
    assert set(TypeAdapter(kind).json_schema().get("properties", {})) >= set(kind.model_fields)


def test_all_specifications_are_asked() -> None:
    asked = every_spec()
    assert {SoftmaxTopk, LayoutSpec, ModelSpec, RoutingSpec, ServeSpec, TuneSpec} <= asked
    assert {AttentionSpec, MlaSpec, RopeSpec, SlidingSpec, TwinsSpec, Seq2SeqSpec} <= asked


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
