"""Specifications refuse what cannot be built, before anything is allocated."""

from __future__ import annotations

import json

import pytest

from moe_core.errors import SpecError
from moe_core.spec import LayoutSpec, ModelSpec, MoeSpec
from tests.moe_core.tiny import FAMILIES, tiny_family, tiny_llama, tiny_mixtral, tiny_turnout

WINDOW = {"sliding_window": 4, "sliding_layers": (1,)}
OWN_WINDOW = {"num_attention_heads": 8, "rope_theta": 100.0}


@pytest.mark.parametrize(
    "spec",
    [tiny_llama(), tiny_mixtral(), tiny_turnout(), *map(tiny_family, FAMILIES)],
    ids=lambda spec: spec.family,
)
def test_a_specification_survives_json(spec: ModelSpec) -> None:
    assert ModelSpec.parse(json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_attention_heads": 7}, "must be divisible"),
        ({"head_dim": 15}, "must be even"),
        ({"eos_token_ids": (97,)}, "outside the vocabulary"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"auto_map": {}}, "auto_map"),
        ({"family": "mixtral"}, "must have a moe part"),
        ({"rope": {"partial_rotary_factor": 0.0}}, "partial_rotary_factor"),
        ({"rope": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
        ({"rope": {"partial_rotary_factor": 0.2}}, "has 3 rotary values; they must be even"),
        ({"rope": {"partial_rotary_factor": 0.1}}, "has 1 rotary values"),
        ({"dense_clamps": (1.0,)}, "dense_clamps has 1 values; give one for each of the 3 layers"),
        ({"dense_clamps": (0.0, 0.0, 0.0)}, "dense_clamps is 0 in every layer; give an empty list"),
        ({"dense_clamps": (0.0, -1.0, 0.0)}, "dense_clamps"),
        ({"dense_clamps": (0.0, float("inf"), 0.0)}, "dense_clamps"),
        (
            {"expert_clamps": (7.0, 0.0, 0.0), "activation": "gelu"},
            "belongs to activation 'silu', not 'gelu'",
        ),
        ({"attention": {"sliding": OWN_WINDOW}}, "sliding must be null"),
        ({"attention": {**WINDOW, "sliding": {**OWN_WINDOW, "num_attention_heads": 5}}}, "must be divisible"),
        (
            {"attention": {**WINDOW, "sliding": {**OWN_WINDOW, "num_attention_heads": 0}}},
            "num_attention_heads",
        ),
        ({"attention": {**WINDOW, "sliding": {**OWN_WINDOW, "rope_theta": 0.5}}}, "rope_theta"),
        ({"attention": {**WINDOW, "sliding": {**OWN_WINDOW, "partial_rotary_factor": 0.2}}}, "must be even"),
    ],
)
def test_it_names_what_is_wrong(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        tiny_llama(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"num_experts": 10**9},
        {"top_k": 5},
        {"moe_layers": (1, 0)},
        {"moe_layers": (0, 0)},
        {"moe_layers": ()},
        {"num_shared_experts": 2},
        {"num_shared_experts": 1},
        {"shared_intermediate_size": 8},
        {"temperature": 0.0},
    ],
)
def test_the_expert_part_is_bounded(change: dict[str, object]) -> None:
    fields = {"moe_layers": (0, 1), "num_experts": 4, "top_k": 2, "moe_intermediate_size": 8}
    MoeSpec.parse(fields)
    with pytest.raises(SpecError):
        MoeSpec.parse({**fields, **change})


def test_a_layout_over_every_layer_is_a_mixtral() -> None:
    assert tiny_mixtral().family == "mixtral"


@pytest.mark.parametrize(
    "change",
    [
        {"moe_layers": (0, 2)},
        {"num_shared_experts": 1},
        {"moe_intermediate_size": 32},
        {"norm_topk_prob": False},
    ],
)
def test_any_other_layout_is_turnouts_own(change: dict[str, object]) -> None:
    layout = LayoutSpec.parse({"moe_layers": (0, 1, 2), "num_experts": 4, **change})
    assert layout.applied_to(tiny_llama()).family == "turnout_moe"


def test_a_layout_refuses_layers_that_the_model_lacks() -> None:
    with pytest.raises(SpecError, match="layer 3 is outside the model's 3 layers; choose layers from 0 to 2"):
        LayoutSpec(moe_layers=(1, 3)).applied_to(tiny_llama())


def test_a_layout_refuses_a_model_that_is_a_mixture_already() -> None:
    with pytest.raises(SpecError, match="already a mixture"):
        LayoutSpec(moe_layers=(0,)).applied_to(tiny_mixtral())
