"""Whatever stands in a specification's field by mistake is refused in a sentence of ours, beside that field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from moe_core.errors import SpecError
from moe_core.sentences import CORE
from moe_core.spec import LayoutSpec, RoutingSpec, TuneSpec
from moe_core.spec.base import Spec
from moe_core.spec.complaints import SENTENCES
from moe_core.spec.operate import OperateSpec
from moe_core.spec.operations import OPERATION

WRONG: tuple[Any, ...] = (
    None, "x", "", "A B", -1, 0, 1.5, 10**9, 10**30, True, [], {}, [1, -2], ["x"], [[1]], {"kind": "no"}, {"no": 1},
    math.nan, math.inf, {"3": 4}, [{"code": 1}], "9" * 400, "\ud800",
)  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {
    "LayoutSpec": {"moe_layers": [0]},
    "TuneSpec": {"routing": {}},
    "OperateSpec": {"operation": {"kind": "add"}},
    "upcycle": {"layout": {"moe_layers": [0]}},
    "compose": {"domains": ["law", "code"]},
    "grow": {"num_experts": 8},
    "merge": {"first": 0, "second": 1},
    "specialise_clone": {"domain": "law"},
    "distil": {"num_experts": 2},
}


def asked() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every field of every specification that people write, with every wrong value."""
    doors: list[tuple[Any, str, dict[str, Any]]] = [
        (kind, kind.__name__, kind.model_fields) for kind in (LayoutSpec, RoutingSpec, TuneSpec, OperateSpec)
    ]
    schema = OPERATION.json_schema()
    for tag, ref in schema["discriminator"]["mapping"].items():
        doors.append((OPERATION, tag, schema["$defs"][ref.rsplit("/", 1)[-1]]["properties"]))
    for door, name, fields in doors:
        plain = {**({"kind": name} if door is OPERATION else {}), **NEEDED.get(name, {})}
        yield from ((door, {**plain, field: value}) for field in [*fields, "unknown"] for value in WRONG)


def refusal(door: Any, data: Any) -> SpecError | None:
    try:
        door.parse(data)
    except SpecError as error:
        return error
    return None


def test_no_word_of_a_library_reaches_a_person() -> None:
    refused = [(data, error) for door, data in asked() if (error := refusal(door, data))]
    assert len(refused) > 2000
    strange = {
        sentence: data
        for data, error in refused
        for place, sentence in error.faults
        if place and not CORE.understand(sentence)
    }
    assert not strange, strange
    assert not [data for data, error in refused if "nput should" in str(error) or "constrained" in str(error)]


@pytest.mark.parametrize(
    ("door", "data", "faults"),
    [
        (OPERATION, {"kind": "remove", "expert": -1}, {("expert",): ("not_at_least", "0")}),
        (OPERATION, {"kind": "remove", "expert": [1, -2]}, {("expert", 1): ("not_at_least", "0")}),
        (OPERATION, {"kind": "remove", "expert": "x"}, {("expert",): ("not_a_whole_number",)}),
        (OPERATION, {"kind": "grow"}, {("num_experts",): ("value_missing",)}),
        (
            OPERATION,
            {"kind": "quantise", "quantisation": {"bits": 3}},
            {("quantisation", "bits"): ("not_one_of", "4, 8")},
        ),
        (
            OPERATION,
            {"kind": "distil", "num_experts": 2, "temperature": 0, "clip_norm": "big", "extra": 1},
            {
                ("temperature",): ("not_at_least", "0.1"),
                ("clip_norm",): ("not_a_number",),
                ("extra",): ("field_unknown",),
            },
        ),
        (OPERATION, {"kind": None}, {(): ("kind_missing", "'kind'")}),
        (
            OPERATION,
            {"kind": "upcycle", "layout": {"moe_layers": [0], "gate": {"kind": "top_p", "p": 2}}},
            {("layout", "gate", "p"): ("not_at_most", "1")},
        ),
        (LayoutSpec, {"moe_layers": [0, 600]}, {("moe_layers", 1): ("not_below", "512")}),
        (RoutingSpec, {"prior_layers": {"x": {}}}, {("prior_layers", "x"): ("layer_key", "'x'")}),
    ],
)
def test_the_fault_stands_beside_its_field(door: Any, data: Any, faults: dict[Any, Any]) -> None:
    error = refusal(door, data)
    assert error is not None
    found = {}
    for place, sentence in error.faults:
        understood = CORE.understand(sentence)
        assert understood is not None
        found[place] = (understood[0], *understood[1].values())
    assert found == faults


def test_every_complaint_has_a_sentence_with_its_values() -> None:
    for code, places in SENTENCES.values():
        assert CORE.say(code, **dict.fromkeys(places, "1"))


def test_the_whole_sentence_has_field_value_and_way_out() -> None:
    class Small(Spec):
        """One field."""

        steps: int = 1
        """How many."""

    assert str(refusal(Small, {"steps": "x"})) == 'Small.steps: this must be a whole number, and is "x"'
    assert str(refusal(Small, {"step": 2})) == "Small.step: there is no such field; did you mean steps?"


@pytest.mark.parametrize(
    ("door", "data", "sentence"),
    [
        (
            LayoutSpec,
            {"moe_layers": ["x"]},
            'LayoutSpec.moe_layers.0: this must be a whole number, and is "x"',
        ),
        (
            OPERATION,
            {"kind": "remove", "expert": [-1]},
            "remove.expert.0: this must be at least 0, and is -1",
        ),
        (
            OPERATION,
            {"kind": "compose", "domains": ["law"]},
            'compose.domains: this must have at least 2 entries, and is ["law"]',
        ),
    ],
)
def test_a_list_with_a_wrong_entry_is_not_called_too_short(
    door: Any, data: dict[str, Any], sentence: str
) -> None:
    assert str(refusal(door, data)) == sentence
