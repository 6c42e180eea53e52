"""A schema that no finite text matches is refused before an answer begins; one that some text matches is not."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.checkpoint.tokenizer import Tokenizer
from moe_core.engine.endless_schema import never_ends
from moe_core.engine.grammar import GrammarCompiler
from moe_core.engine.requests import MAX_SCHEMA_CHARS, GrammarBody
from moe_core.errors import SpecError
from tests.moe_core.engine.model_dirs import write_byte_tokenizer


def node(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


SELF = {"$ref": "#"}
A, B = {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}
ENDLESS = {
    "an object that must hold itself": node("next", next=SELF),
    "an array of one at least": {"type": "array", "items": SELF, "minItems": 1},
    "a first element": {"type": "array", "prefixItems": [SELF], "minItems": 1},
    "a circle of two": A | {"$defs": {"a": node("x", x=B), "b": node("x", x={"anyOf": [A, B]})}},
    "every kind of value": {"type": ["object", "array"], "minItems": 2, "items": SELF, "required": ["x"]}
    | {"additionalProperties": SELF},
    "all of both": {"allOf": [node("x", x={"type": "string"}), node("y", y=SELF)]},
    "nothing but itself": {"$ref": "#"},
    "a name that is escaped": {
        "$ref": "#/$defs/a~1b%20c",
        "$defs": {"a/b c": node("x", x={"$ref": "#/$defs/a~1b c"})},
    },
}
ENDING = {
    "no reference": node("next", next=node("next", next={"type": "string"})),
    "an optional property": node(next=SELF),
    "an array that may be empty": {"type": "array", "items": SELF},
    "an array of one that is another": {
        "type": "array",
        "prefixItems": [{"type": "null"}],
        "items": SELF,
        "minItems": 1,
    },
    "a way out": node("next", next={"anyOf": [SELF, {"type": "null"}]}),
    "a way out of the circle": A | {"$defs": {"a": node("x", x=B), "b": {"anyOf": [A, {"type": "string"}]}}},
    "another type": {"type": ["object", "null"], "properties": {"x": SELF}, "required": ["x"]},
    "no type": {"properties": {"x": SELF}, "required": ["x"]},
    "a value that is told": node("x", x={"const": {"x": 1}, "$ref": "#"}),
    "a property that a pattern may describe": {
        "type": "object",
        "required": ["x"],
        "patternProperties": {"x": {}},
    }
    | {"additionalProperties": SELF},
    "another document": node("x", x={"$ref": "https://example.org/schema"}),
    "an anchor": node("x", x={"$ref": "#there"}),
    "a root within": node("x", x={"$id": "urn:x", "anyOf": [{"$ref": "#/$defs/y"}], "$defs": {"y": {}}}),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends_is_told(what: str) -> None:
    assert never_ends(ENDLESS[what])


@pytest.mark.parametrize("what", ENDING)
def test_what_may_end_is_not(what: str) -> None:
    assert not never_ends(ENDING[what])


def test_it_is_refused_with_a_way_out_before_an_answer_begins(tmp_path: Any) -> None:
    write_byte_tokenizer(tmp_path)
    compiler = GrammarCompiler(Tokenizer(tmp_path), [256, 258])
    with pytest.raises(
        SpecError, match=r"no answer could end.*leave a property of that circle out of required"
    ):
        compiler.matchers(GrammarBody(json_schema=ENDLESS["a circle of two"]), 1)
    assert compiler.matchers(GrammarBody(json_schema=ENDING["a way out of the circle"]), 1)


NAMES = st.sampled_from("abcd")
REFS = NAMES.map(lambda name: {"$ref": f"#/$defs/{name}"})
PARTS = st.recursive(
    REFS | st.just({"type": "string"}),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"allOf": some}),
        st.dictionaries(NAMES, inner, min_size=1, max_size=2).map(
            lambda some: node(*sorted(some)[:1], **some)
        ),
        st.tuples(inner, st.integers(0, 1)).map(
            lambda one: {"type": "array", "items": one[0], "minItems": one[1]}
        ),
    ),
    max_leaves=4,
)


@given(st.fixed_dictionaries(dict.fromkeys("abcd", PARTS)))
def test_it_is_what_unfolding_every_reference_so_often_as_there_are_some_finds(parts: dict[str, Any]) -> None:
    def ends(part: dict[str, Any], left: int) -> bool:
        """Whether there is a value in which references are followed so deep at most."""
        if "$ref" in part:
            return left > 0 and ends(parts[part["$ref"][-1]], left - 1)
        if "anyOf" in part:
            return any(ends(one, left) for one in part["anyOf"])
        if "allOf" in part:
            return all(ends(one, left) for one in part["allOf"])
        if part["type"] == "object":
            return all(ends(part["properties"][name], left) for name in part["required"])
        return part["type"] != "array" or not part["minItems"] or ends(part["items"], left)

    assert never_ends(A | {"$defs": parts}) is not ends(A, len(parts))


def test_it_costs_little_whatever_is_sent() -> None:
    """References in the worst order, as many as a schema has room for."""
    number = 1200
    ring = {f"{one:04}": node("x", x={"$ref": f"#/$defs/{one + 1:04}"}) for one in range(number)}
    schema = {"$ref": "#/$defs/0000", "$defs": ring | {f"{number:04}": {"type": "string"}}}
    assert len(json.dumps(schema)) > MAX_SCHEMA_CHARS
    began = time.process_time()
    assert not never_ends(schema)
    assert time.process_time() - began < 1.0
