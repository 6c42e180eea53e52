"""`/api/v1/schema/` shows layouts, gates and operations with their kinds told apart, in OpenAPI's own spelling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from api.schema import described
from moe_core.spec.operations import OPERATION

GATES = {
    "softmax_topk", "sigmoid_groups", "sparsemax", "top_p", "switch", "gshard_top2", "noisy_topk", "sinkhorn", "quantile",
    "expert_choice", "base", "soft", "hash", "hierarchical",
}  # fmt: skip


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    return described()["components"]["schemas"]


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema, itself first."""
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from parts(part)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("GateSpec", GATES), ("OperationSpec", set(OPERATION.json_schema()["discriminator"]["mapping"]))],
)
def test_each_kind_is_told_apart_by_its_name(schemas: dict[str, Any], name: str, kinds: set[str]) -> None:
    mapping = schemas[name]["discriminator"]["mapping"]
    assert schemas[name]["discriminator"]["propertyName"] == "kind"
    assert set(mapping) == kinds
    assert {choice["$ref"] for choice in schemas[name]["oneOf"]} == set(mapping.values())
    for kind, ref in mapping.items():
        assert schemas[ref.rpartition("/")[2]]["properties"]["kind"]["enum"] == [kind]


def test_a_layout_names_its_gate_and_every_field_has_words(schemas: dict[str, Any]) -> None:
    layout = schemas["LayoutSpec"]
    assert layout["properties"]["gate"]["discriminator"]["propertyName"] == "kind"
    assert all(field["description"] for field in layout["properties"].values())
    assert {"$ref": "#/components/schemas/LayoutSpec"} in list(parts(schemas["LayoutInRequest"]))


def test_every_reference_leads_somewhere_and_nothing_is_spelt_in_a_newer_way(schemas: dict[str, Any]) -> None:
    found = [
        part
        for name in ("LayoutSpec", "RoutingSpec", "GateSpec", "OperationSpec", "TuneSpec", "OperateSpec")
        for part in parts(schemas[name])
    ]
    for part in found:
        assert part.get("$ref", "#/components/schemas/GateSpec").rpartition("/")[2] in schemas
        assert not {"const", "$defs"} & part.keys() and part.get("type") != "null"
        assert isinstance(part.get("exclusiveMinimum", True), bool | dict)


@pytest.mark.parametrize("name", ["TuneSpec", "OperateSpec"])
def test_what_a_run_is_submitted_with_is_described(schemas: dict[str, Any], name: str) -> None:
    assert all(field["description"] for field in schemas[name]["properties"].values())
