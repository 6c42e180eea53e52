"""JSON schemas that no finite text matches: whatever they describe must hold another of itself.

llguidance refuses what contradicts itself, and reads such a circle as any other: an answer would go on until its last token.
Found out is the least fixed point of "has an instance that ends" over what `$ref` points to. What is not understood is
taken to end: nothing is refused that could be answered.

Source: JSON Schema, draft 2020-12, "Core" 7.7 and 8.2.3 (references), "Validation" 6.4 and 6.5 (arrays and objects).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

# A chain of references that stands in the worst order takes a round for each; beyond these it is taken to end.
MAX_ROUNDS = 16
Ends = Callable[[Any], bool]


def never_ends(schema: dict[str, Any]) -> bool:
    """Whether certainly no finite value matches the schema."""
    refs = list(_refs(schema))
    # An identifier within gives its references another root.
    if not refs or '"$id"' in json.dumps([*schema.values()]):
        return False
    targets = {ref: _target(schema, ref) for ref in refs}
    ending: set[str] = {ref for ref, target in targets.items() if target is None}

    def ends(part: Any) -> bool:
        return not isinstance(part, dict) or _ends(part, ends, ending)

    for _ in range(MAX_ROUNDS):
        found = {ref for ref in targets.keys() - ending if ends(targets[ref])}
        if not found:
            return not ends(schema)
        ending |= found
    return False


def _ends(part: dict[str, Any], ends: Ends, ending: set[str]) -> bool:
    """Whether one part of a schema has an instance that ends, as far as it is known of what it refers to."""
    if "const" in part or "enum" in part:
        return True
    ref = part.get("$ref")
    if isinstance(ref, str) and ref not in ending:
        return False
    if not all(ends(one) for one in _listed(part, "allOf")):
        return False
    if any(
        choices and not any(ends(one) for one in choices)
        for choices in (_listed(part, "anyOf"), _listed(part, "oneOf"))
    ):
        return False
    types = part.get("type")
    names = types if isinstance(types, list) and types else [types]
    return any(all(ends(one) for one in _needed(part, name)) for name in names)


def _needed(part: dict[str, Any], name: Any) -> Iterator[Any]:
    """The schemas of what each value of a type must hold; none for a type that need hold nothing."""
    if name == "object":
        own = part.get("properties")
        named = own if isinstance(own, dict) else {}
        for key in _listed(part, "required"):
            if isinstance(key, str) and (key in named or "patternProperties" not in part):
                yield named.get(key, part.get("additionalProperties"))
    if name == "array":
        number, first = part.get("minItems"), _listed(part, "prefixItems")
        number = number if isinstance(number, int) else 0
        yield from first[:number]
        if number > len(first):
            yield part.get("items")


def _listed(part: dict[str, Any], name: str) -> list[Any]:
    found = part.get(name)
    return found if isinstance(found, list) else []


def _refs(part: Any) -> Iterator[str]:
    """Every reference within; also what only looks like one, which does no harm."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from _refs(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _refs(inner)


def _target(schema: dict[str, Any], ref: str) -> Any:
    """What a JSON pointer into the schema points to; None for any other reference."""
    if ref != "#" and not ref.startswith("#/"):
        return None
    found: Any = schema
    for step in unquote(ref[2:]).split("/") if len(ref) > 1 else ():
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found
