"""What is foretold of an operation is what it makes: same experts, same parameters, same bytes, same work."""

from __future__ import annotations

from typing import Any

import pytest

from moe_core.errors import SpecError
from moe_core.model.init import random_decoder
from moe_core.operations import grow, quantise
from moe_core.spec import cost_of
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import OPERATION, GrowSpec
from tests.moe_core.operations.acts import ACTS
from tests.moe_core.operations.models import mixture, mixture_spec, some_prompts
from tests.moe_core.tiny import STD, tiny_family, tiny_llama

WHOLE = {"kind": "quantise", "attention": {"bits": 4}, "head": {"bits": 8}}
LAYOUT = {"moe_layers": [0, 2], "num_experts": 4, "top_k": 2}


def made(operation: Any) -> Any:
    """What the operation itself makes of the small models."""
    model = mixture()
    if operation.kind == "upcycle":
        model = random_decoder(tiny_llama(), 5, STD)
    if operation.kind == "dequantise":
        model = quantise(model, OPERATION.parse(WHOLE))[0]
    if operation.kind == "release_twins":
        model = grow(model, GrowSpec(num_experts=8))[0]
    return ACTS[operation.kind](model, operation, some_prompts())[0]


@pytest.mark.parametrize(
    "plain",
    [
        {"kind": "upcycle", "layout": LAYOUT},
        {"kind": "upcycle", "layout": LAYOUT, "granularity": 2},
        {"kind": "grow", "num_experts": 16},
        {"kind": "grow", "num_experts": 8, "method": "double_k"},
        {"kind": "grow", "num_experts": 16, "method": "split"},
        {"kind": "add", "source": 2},
        {"kind": "remove"},
        {"kind": "remove", "expert": [0, 3]},
        {"kind": "merge", "first": 0, "second": 3},
        {"kind": "specialise_clone", "domain": "law", "steps": 1},
        {"kind": "quantise", "quantisation": {"bits": 8, "group_size": 32, "symmetric": False}},
        {"kind": "quantise", "attention": {"bits": 8}},
        {"kind": "quantise", "head": {"bits": 8, "group_size": 32}},
        WHOLE,
        {"kind": "dequantise"},
        {"kind": "wake_expert", "steps": 1},
        {"kind": "release_twins"},
        {"kind": "release_twins", "hold": 0.5},
        {"kind": "distil", "num_experts": 2, "moe_intermediate_size": 16, "steps": 1},
        {"kind": "compose", "domains": ["law", "code"]},
    ],
    ids=str,
)
def test_what_is_foretold_is_what_is_made(plain: dict[str, Any]) -> None:
    operation = OPERATION.validate_python(plain)
    before = tiny_llama() if operation.kind == "upcycle" else mixture_spec()
    if operation.kind == "dequantise":
        before = foreseen(before, OPERATION.parse(WHOLE))
    if operation.kind == "release_twins":
        before = foreseen(before, GrowSpec(num_experts=8))
    told, true = foreseen(before, operation), made(operation).spec
    assert told.moe is not None and true.moe is not None
    told_moe, true_moe = told.moe.model_dump(), true.moe.model_dump()
    if operation.kind in ("remove", "merge"):
        # Twins are left only where the given experts had some.
        assert true_moe.pop("twins") is told_moe.pop("twins") is None
    assert told_moe == true_moe
    assert told.tie_word_embeddings is true.tie_word_embeddings
    assert cost_of(told).as_dict(16) == cost_of(true).as_dict(16)


@pytest.mark.parametrize("family", ["deepseek_v3", "step3p5"])
def test_attention_that_cannot_be_packed_is_refused_before(family: str) -> None:
    with pytest.raises(SpecError, match="cannot be packed") as refused:
        foreseen(tiny_family(family), OPERATION.parse({**WHOLE, "head": None}))
    ((place, _sentence),) = refused.value.complaints
    assert place == ("attention",)
    assert foreseen(tiny_family(family), OPERATION.parse({**WHOLE, "attention": None})).moe


GROUPED = {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1, "group_score": "best"}


@pytest.mark.parametrize(
    "plain",
    [
        {"kind": "grow", "num_experts": 16},
        {"kind": "grow", "num_experts": 16, "method": "double_k"},
        {"kind": "grow", "num_experts": 16, "method": "split"},
        {"kind": "add", "source": 1, "per_group": True},
        {"kind": "remove", "expert": 1, "per_group": True},
        {"kind": "merge", "first": 0, "second": 1, "per_group": True},
    ],
    ids=lambda plain: "-".join(str(value) for value in plain.values()),
)
@pytest.mark.parametrize("norm", [True, False])
def test_groups_are_foretold_as_they_are_made(plain: dict[str, Any], norm: bool) -> None:
    operation = OPERATION.validate_python(plain)
    model = mixture(num_experts=8, gate=GROUPED, norm_topk_prob=norm)
    true = ACTS[operation.kind](model, operation, some_prompts())[0].spec.moe
    told = foreseen(model.spec, operation).moe
    assert told is not None and true is not None
    assert told.model_dump() == true.model_dump()


@pytest.mark.parametrize(
    ("plain", "moe", "field"),
    [
        ({"kind": "grow", "num_experts": 6}, {}, "num_experts"),
        ({"kind": "grow", "num_experts": 2}, {}, "num_experts"),
        ({"kind": "grow", "num_experts": 8, "method": "split"}, {"moe_intermediate_size": 31}, "method"),
        ({"kind": "grow", "num_experts": 8, "method": "split"}, {"gate": {"kind": "top_p"}}, "method"),
        ({"kind": "grow", "num_experts": 8}, {"gate": {"kind": "expert_choice"}}, ""),
        ({"kind": "add", "source": 4}, {}, "source"),
        ({"kind": "remove", "expert": 4}, {}, "expert"),
        ({"kind": "remove", "expert": [1]}, {}, "expert"),
        ({"kind": "remove"}, {"num_experts": 2}, ""),
        ({"kind": "merge", "first": 1, "second": 1}, {}, "second"),
        ({"kind": "merge", "first": [0, 1], "second": [1, 1]}, {}, "second"),
        ({"kind": "merge", "first": [0, 1], "second": 0}, {}, "second"),
        ({"kind": "specialise_clone", "domain": "law"}, {"gate": {"kind": "expert_choice"}}, ""),
        ({"kind": "specialise_clone", "domain": "law"}, {"twins": {"roots": [0, 1, 2, 1]}}, ""),
        ({"kind": "specialise_clone", "domain": "law"}, {"twins": {"roots": [0, 1, 2, 1], "hold": 1.0}}, ""),
        ({"kind": "add", "source": 3}, {"twins": {"roots": [0, 1, 2, 1]}}, "source"),
        ({"kind": "distil", "num_experts": 5}, {}, "num_experts"),
        ({"kind": "distil", "num_experts": 2, "moe_intermediate_size": 64}, {}, "moe_intermediate_size"),
        ({"kind": "quantise"}, {"quantisation": {"bits": 8}}, ""),
        ({"kind": "dequantise"}, {}, ""),
        ({"kind": "wake_expert"}, {"num_experts": 2}, ""),
        ({"kind": "wake_expert", "expert": 4}, {}, "expert"),
        ({"kind": "release_twins"}, {}, ""),
        ({"kind": "grow", "num_experts": 8}, {"capacity": {"train_factor": 1.0}}, ""),
        ({"kind": "remove", "expert": 1}, {"gate": GROUPED}, "per_group"),
        ({"kind": "add", "source": 2, "per_group": True}, {"gate": GROUPED}, "source"),
        (
            {"kind": "grow", "num_experts": 8, "method": "split"},
            {"gate": {**GROUPED, "group_score": "two_best"}},
            "method",
        ),
        ({"kind": "remove"}, {"gate": {"kind": "hash"}}, ""),
        ({"kind": "compose", "domains": ["a", "b"], "moe_layers": [0]}, {}, "moe_layers"),
    ],
)
def test_what_the_operation_would_refuse_is_refused_before(
    plain: dict[str, Any], moe: dict[str, Any], field: str
) -> None:
    with pytest.raises(SpecError) as refused:
        foreseen(mixture_spec(**moe), OPERATION.validate_python(plain))
    ((place, _sentence),) = refused.value.complaints
    assert ".".join(map(str, place)) == field


def test_nothing_is_taken_from_a_dense_model() -> None:
    with pytest.raises(SpecError, match="make it a mixture first"):
        foreseen(tiny_llama(), OPERATION.validate_python({"kind": "remove"}))
