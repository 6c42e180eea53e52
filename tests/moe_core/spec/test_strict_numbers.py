"""Specifications take numbers that are numbers, and say the value that they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from moe_core.errors import FormatError, SpecError
from moe_core.model.families import spec_of
from moe_core.spec import LayoutSpec, RoutingSpec, ServeSpec
from moe_core.spec.operations import OPERATION, GrowSpec
from tests.moe_core.tiny import tiny_mixtral


@pytest.mark.parametrize(
    ("value", "said"), [(True, "true"), ("8", '"8"'), (8.0, "8.0"), (None, "null"), (2048, "2048")]
)
def test_a_count_is_a_whole_number(value: object, said: str) -> None:
    with pytest.raises(SpecError, match=rf"^LayoutSpec\.num_experts: .*, and is {said}$"):
        LayoutSpec.parse({"moe_layers": [0], "num_experts": value})
    with pytest.raises(SpecError, match=rf"grow\.num_experts: .*, and is {said}$"):
        OPERATION.parse({"kind": "grow", "num_experts": value})
    with pytest.raises(FormatError, match=rf"num_local_experts: .*, and is {said}$"):
        spec_of({**mixtral(), "num_local_experts": value})


@pytest.mark.parametrize("layers", [[0, True], [0, "1"], [0, 1.0]])
def test_so_are_the_numbers_of_a_list(layers: list[Any]) -> None:
    with pytest.raises(SpecError, match=r"moe_layers\.1: "):
        LayoutSpec.parse({"moe_layers": layers})


def test_what_json_has_is_taken() -> None:
    assert LayoutSpec.parse({"moe_layers": [0, 1], "temperature": 1}).moe_layers == (0, 1)
    routing = RoutingSpec.parse({"prior_layers": {"3": {"mode": "mask"}}})
    assert routing.prior_in(3).mode == "mask"
    assert OPERATION.validate_python({"kind": "grow", "num_experts": 8}) == GrowSpec(num_experts=8)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"kind": "shrink"}, "there is no 'kind' called 'shrink'; there are: 'upcycle', "),
        ({"num_experts": 8}, "'kind' is missing"),
        ({"kind": "compose", "domains": "law"}, 'compose.domains: this must be a list, and is "law"'),
        ([], r"the specification: .*, and is \[\]"),
        ({"kind": "grow"}, r"grow\.num_experts: this is missing; give it a value"),
    ],
)
def test_an_operation_that_is_none_is_refused_as_every_specification(data: Any, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        OPERATION.validate_python(data)


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(SpecError, match=r"num_expert: .*; did you mean num_experts\?"):
        LayoutSpec.parse({"moe_layers": [0], "num_expert": 4})
    with pytest.raises(FormatError, match=r"sliding_window: this must be null, and is 4096"):
        spec_of({**mixtral(), "sliding_window": 4096})


def mixtral() -> dict[str, Any]:
    from moe_core.model.families import config_of

    return config_of(tiny_mixtral(), "float32")


def test_paths_and_lists_come_as_json_has_them() -> None:
    served = ServeSpec.parse({"model_dir": "/models/m", "socket_path": "/run/m.sock"})
    assert served.model_dir == Path("/models/m")


@pytest.mark.parametrize("key", ["01", " 1", "1 ", "+1", "1_0", "１", "-1", "512", "one", ""])
def test_a_layer_has_one_spelling_as_a_key(key: str) -> None:
    with pytest.raises(SpecError, match="a key of prior_layers is the number of a layer") as found:
        RoutingSpec.parse({"prior_layers": {"1": {"mode": "mask"}, key: {"mode": "none"}}})
    assert found.value.faults[0][0][:2] == ("prior_layers", key)
    pattern = RoutingSpec.model_json_schema()["properties"]["prior_layers"]["propertyNames"]["pattern"]
    assert not re.search(pattern, key)


def test_every_layer_can_be_a_key() -> None:
    pattern = RoutingSpec.model_json_schema()["properties"]["prior_layers"]["propertyNames"]["pattern"]
    every = {str(layer): {"mode": "none"} for layer in range(512)}
    assert all(re.search(pattern, key) for key in every)
    assert list(RoutingSpec.parse({"prior_layers": every}).prior_layers) == list(range(512))
    back = RoutingSpec.model_validate_json(RoutingSpec.parse({"prior_layers": {511: {}}}).model_dump_json())
    assert list(back.prior_layers) == [511]
