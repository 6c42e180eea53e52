"""Gates as specifications: chosen by kind, bounded, kept in config.json, and silent where nothing was chosen."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from moe_core.errors import SpecError
from moe_core.model.families import config_of, spec_of
from moe_core.spec import CapacitySpec, GateSpec, LayoutSpec, MoeSpec, TemperatureSpec
from moe_core.spec.gate import (
    Base,
    ExpertChoice,
    Gate,
    GshardTop2,
    Hash,
    Hierarchical,
    Quantile,
    SigmoidGroups,
    Soft,
    SoftmaxTopk,
    Switch,
)
from moe_core.spec.operations import OperationSpec
from tests.moe_core.tiny import tiny_llama, tiny_turnout

GATES: list[type[Gate]] = list(get_args(get_args(GateSpec)[0]))
ONE_EXPERT = {"switch", "base"}
FIELDS = {"moe_layers": (0, 1), "num_experts": 4, "top_k": 2, "moe_intermediate_size": 8}


def kind_of(gate: type[Gate]) -> str:
    return gate.model_fields["kind"].default


@pytest.mark.parametrize("gate", GATES, ids=kind_of)
def test_every_gate_survives_config_json(gate: type[Gate]) -> None:
    layout = LayoutSpec(
        moe_layers=(0, 2), num_experts=4, top_k=1 if kind_of(gate) in ONE_EXPERT else 2, gate=gate(),
        temperature_schedule=TemperatureSpec(step=5),
    )  # fmt: skip
    spec = layout.applied_to(tiny_llama())
    assert spec.moe is not None
    assert spec.moe.gate == gate()
    assert spec_of(json.loads(json.dumps(config_of(spec, "float32")))) == spec


def test_the_kind_picks_the_gate() -> None:
    found = TypeAdapter(GateSpec).validate_python({"kind": "sigmoid_groups", "num_groups": 4})
    assert found == SigmoidGroups(num_groups=4)
    schema = TypeAdapter(GateSpec).json_schema()
    assert sorted(schema["discriminator"]["mapping"]) == sorted(kind_of(gate) for gate in GATES)


@pytest.mark.parametrize("spec", [LayoutSpec, GateSpec, OperationSpec], ids=["layout", "gate", "operation"])
def test_a_schema_asks_for_the_name_of_every_kind(spec: Any) -> None:
    """As validation does: a schema that lets it be left out accepts what is refused."""
    schema = TypeAdapter(spec).json_schema()
    kinds = [
        part for part in schema["$defs"].values() if "const" in part.get("properties", {}).get("kind", {})
    ]
    assert len(kinds) > 5
    for part in kinds:
        assert part["required"].count("kind") == 1, part["title"]
    # A temperature has a kind too, but may leave it out.
    schedules = [part for part in schema["$defs"].values() if part["title"] == "TemperatureSpec"]
    assert all("kind" not in part.get("required", []) for part in schedules)


@pytest.mark.parametrize(
    "change",
    [{"gate": {"p": 0.5}}, {"gate": {}}, {"expert_kinds": [{"width": 8}] * 4}, {"gate": {"kind": "top_p"}}],
)
def test_the_schema_of_a_layout_and_its_validation_agree_on_kinds(change: dict[str, Any]) -> None:
    layout = {"moe_layers": [0, 1], "num_experts": 4, "top_k": 2, **change}
    schema = Draft202012Validator(LayoutSpec.model_json_schema())
    try:
        LayoutSpec.parse(layout)
    except SpecError:
        assert not schema.is_valid(layout)
    else:
        assert schema.is_valid(layout)


def test_a_mixture_that_names_no_gate_is_written_as_ever() -> None:
    keys = config_of(tiny_turnout(), "float32")
    assert not {key for key in keys if key.startswith("router_")} - {"router_temperature"}
    assert MoeSpec.parse(FIELDS).gate == SoftmaxTopk()


def test_the_capacity_survives_config_json() -> None:
    capacity = CapacitySpec(train_factor=1.5, eval_factor=2.0, overflow="learned", priority="weight")
    spec = LayoutSpec(moe_layers=(0,), capacity=capacity).applied_to(tiny_llama())
    assert spec_of(config_of(spec, "float32")) == spec


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"gate": Switch()}, "sends a token to one expert; top_k is 2"),
        ({"gate": Base()}, "sends a token to one expert; top_k is 2"),
        ({"gate": GshardTop2(), "top_k": 1}, "sends a token to two experts; top_k is 1"),
        ({"gate": SigmoidGroups(num_groups=3)}, r"num_experts \(4\) must be divisible by num_groups \(3\)"),
        ({"gate": SigmoidGroups(num_groups=2, topk_group=3)}, "topk_group"),
        ({"gate": SigmoidGroups(num_groups=4, topk_group=1)}, "must not exceed the 1 experts of 1 groups"),
        ({"gate": Hierarchical(num_domains=3)}, "must be divisible by the 3 groups"),
        ({"gate": Soft(), "capacity": CapacitySpec()}, "gate 'soft' fills its experts evenly by itself"),
        ({"gate": ExpertChoice(), "capacity": CapacitySpec()}, "gate 'expert_choice' fills"),
        ({"gate": Base(), "top_k": 1, "capacity": CapacitySpec()}, "gate 'base' fills"),
        ({"temperature": 2.0, "temperature_schedule": TemperatureSpec()}, "not both"),
        ({"gate": {"kind": "psychic"}}, "gate"),
    ],
)  # fmt: skip
def test_it_names_what_does_not_fit(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        MoeSpec.parse({**FIELDS, **change})


def test_a_mixtral_has_the_plain_gate() -> None:
    every = {"moe_layers": (0, 1, 2), "num_experts": 4}
    assert LayoutSpec.parse(every).applied_to(tiny_llama()).family == "mixtral"
    changes = ({"gate": Hash()}, {"capacity": CapacitySpec()}, {"temperature_schedule": TemperatureSpec()})
    for change in changes:
        assert LayoutSpec.parse({**every, **change}).applied_to(tiny_llama()).family == "turnout_moe"


@pytest.mark.parametrize(
    ("tokens", "top_k", "factor", "expected"),
    [
        (100, 2, 1.0, 50),
        (100, 2, 1.25, 63),
        (100, 1, 1.1, 28),
        (3, 1, 1.0, 1),
        (0, 2, 1.0, 0),
        (4, 2, 9.0, 4),
    ],
)
def test_capacity_is_the_fair_share_times_the_factor(
    tokens: int, top_k: int, factor: float, expected: int
) -> None:
    found = CapacitySpec(train_factor=factor).tokens_an_expert(tokens, 4, top_k, training=True)
    assert found == expected


def test_no_factor_is_no_limit() -> None:
    capacity = CapacitySpec(train_factor=1.0)
    assert capacity.tokens_an_expert(100, 4, 2, training=False) is None


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_a_temperature_goes_from_start_to_end(kind: str) -> None:
    schedule = TemperatureSpec.parse({"kind": kind, "start": 2.0, "end": 0.5, "num_steps": 10})
    values = [schedule.at(step) for step in range(12)]
    assert values[0] == 2.0
    assert values[10] == values[11] == 0.5
    assert values == sorted(values, reverse=True)
    middle = {"linear": 1.25, "cosine": 1.25, "exponential": 1.0}[kind]
    assert values[5] == pytest.approx(middle)
    assert values[2] == pytest.approx(
        {"linear": 1.7, "cosine": 1.8568, "exponential": 1.5157}[kind], abs=1e-4
    )


def test_a_schedule_goes_on_where_it_was_saved() -> None:
    schedule = TemperatureSpec(start=4.0, num_steps=100)
    saved = TemperatureSpec.parse(json.loads(schedule.advanced_to(40).model_dump_json()))
    assert saved.now == schedule.at(40)
    assert [saved.at(step) for step in (41, 99)] == [schedule.at(step) for step in (41, 99)]
    moe = MoeSpec.parse({**FIELDS, "temperature_schedule": saved})
    assert moe.temperature_at() == schedule.at(40)
    assert moe.temperature_at(41) == schedule.at(41)


def test_a_constant_schedule_does_not_move() -> None:
    with pytest.raises(SpecError, match="constant"):
        TemperatureSpec.parse({"kind": "constant", "start": 2.0, "end": 1.0})
    assert TemperatureSpec(kind="constant", start=2.0, end=2.0).at(7) == 2.0


def test_thresholds_that_would_be_found_and_forgotten_are_refused() -> None:
    with pytest.raises(
        SpecError, match="leave selection_bias at true, or choose gate 'softmax_topk'"
    ) as found:
        LayoutSpec.parse({"moe_layers": [0], "gate": {"kind": "quantile", "selection_bias": False}})
    assert found.value.faults[0][0][-1] == "selection_bias"
    assert Quantile().selection_bias
