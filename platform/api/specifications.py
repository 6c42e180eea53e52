"""Specifications of moe_core in the OpenAPI schema: layouts, gates, operations and runs, each kind told apart by `kind`.

pydantic writes JSON Schema of 2020; OpenAPI 3.0 knows an older one, in which null, constants and open bounds are spelt
otherwise.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from moe_core.spec import GateSpec, LayoutSpec, RoutingSpec, TuneSpec
from moe_core.spec.operate import OperateSpec
from moe_core.spec.operations import OperationSpec

REF = "#/components/schemas/{model}"
# What OpenAPI 3.0 has no word for, and titles, which only repeat names.
UNSAID = frozenset({"title", "propertyNames", "$defs"})


def components() -> dict[str, Any]:
    """By name: each specification, and whatever it is made of."""
    found: dict[str, Any] = {}
    roots: dict[str, Any] = {
        "LayoutSpec": LayoutSpec,
        "RoutingSpec": RoutingSpec,
        "GateSpec": GateSpec,
        "OperationSpec": OperationSpec,
        "TuneSpec": TuneSpec,
        "OperateSpec": OperateSpec,
    }
    for name, kind in roots.items():
        schema = TypeAdapter(kind).json_schema(ref_template=REF)
        for part, inner in {**schema.get("$defs", {}), name: schema}.items():
            found[part] = spelt(inner)
    return found


def spelt(schema: Any) -> Any:
    """A JSON Schema as OpenAPI 3.0 spells it."""
    if isinstance(schema, list):
        return [spelt(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    said = {key: _of_names(key, part) for key, part in schema.items() if key not in UNSAID}
    if "const" in said:
        said["enum"] = [said.pop("const")]
    for bound, word in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(said.get(word), int | float) and not isinstance(said[word], bool):
            said |= {bound: said[word], word: True}
    choices = said.get("anyOf", [])
    if {"type": "null"} in choices:
        said["anyOf"] = [choice for choice in choices if choice != {"type": "null"}]
        said["nullable"] = True
    return said


def _of_names(key: str, part: Any) -> Any:
    # Below these stand names, which may be any word; and plain values, which are no schemas.
    if key == "properties":
        return {name: spelt(inner) for name, inner in part.items()}
    return part if key in ("default", "enum", "const", "required", "discriminator") else spelt(part)


def with_specifications(result: dict[str, Any], **_given: Any) -> dict[str, Any]:
    """drf-spectacular's last step: add what serializers alone do not say."""
    result.setdefault("components", {}).setdefault("schemas", {}).update(components())
    return result
