"""What is said of experts' new numbers is what the operations do: each new row is made of the rows that are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_core import operations
from moe_core.model import Decoder
from moe_core.operations import compose
from moe_core.operations.parts import per_expert
from moe_core.spec import MoeSpec
from moe_core.spec.numbering import Numbering, numbering
from moe_core.spec.operations import OPERATION
from tests.moe_core.operations.models import mixture, some_prompts
from tests.moe_core.operations.test_groups import grouped

NAMES = {"add": "add_expert", "remove": "remove_expert", "merge": "merge_experts"}
ALONE: list[dict[str, Any]] = [
    {"kind": "grow", "num_experts": 16},
    {"kind": "grow", "num_experts": 8, "method": "double_k"},
    {"kind": "grow", "num_experts": 8, "method": "split"},
    {"kind": "add", "source": 2},
    {"kind": "remove"},
    {"kind": "remove", "expert": [0, 3]},
    {"kind": "merge", "first": 2, "second": 0, "weights": "even"},
    {"kind": "merge", "first": [1, 2], "second": [3, 0]},
    {"kind": "quantise"},
]
GROUPS: list[dict[str, Any]] = [
    {"kind": "grow", "num_experts": 16},
    {"kind": "add", "source": 1, "per_group": True},
    {"kind": "remove", "per_group": True},
    {"kind": "remove", "expert": 3, "per_group": True},
    {"kind": "merge", "first": 0, "second": 2, "per_group": True},
]
LEARNING: list[dict[str, Any]] = [
    {"kind": "specialise_clone", "source": 1, "domain": "law", "steps": 1, "learning_rate": 1e-9},
    {"kind": "wake_expert", "steps": 1, "learning_rate": 1e-9},
    {"kind": "distil", "num_experts": 2, "top_k": 2, "steps": 1, "learning_rate": 1e-9},
]


def rows_of(model: Decoder) -> list[torch.Tensor]:
    """The gate's row of each expert, by layer."""
    return [per_expert(layer)["router.weight"] for layer in model.moe_layers()]


def follows(model: Decoder, operation: Any) -> Numbering:
    """Do an operation, and hold its numbering against the rows of the gates."""
    prompts = some_prompts()
    made, report = _perform_one(model, operation, prompts)
    assert model.spec.moe is not None
    told = numbering(model.spec.moe, operation, report)
    assert told is not None
    after = rows_of(made)
    for layer, (old, new) in enumerate(zip(rows_of(model), after, strict=True)):
        made_of = told.made_of_LF[layer % len(told.made_of_LF)]
        assert len(made_of) == len(new)
        for place, sources in enumerate(made_of):
            # A mean lies in the span of what it is made of; a single row is its source.
            span = old[list(sources)].T
            left = new[place] - span @ torch.linalg.lstsq(span, new[place][:, None]).solution[:, 0]
            assert left.norm() < 1e-4 * new[place].norm()
    return told


def _perform_one(model: Decoder, operation: Any, prompts: Any) -> Any:
    act = getattr(operations, NAMES.get(operation.kind, operation.kind))
    return act(model, operation) if operation.kind in ("grow", "add") else act(model, operation, prompts)


@pytest.mark.parametrize("plain", ALONE + LEARNING, ids=str)
def test_new_experts_are_made_of_the_named_ones(plain: dict[str, Any]) -> None:
    follows(mixture(), OPERATION.parse(plain))


HALVES: list[dict[str, Any]] = [
    {"kind": "remove", "expert": [5, 0], "together": 2},
    {"kind": "remove", "together": 2},
    {"kind": "merge", "first": 2, "second": 4, "together": 2, "weights": "even"},
]


@pytest.mark.parametrize("plain", HALVES, ids=str)
def test_halves_that_go_together_are_followed(plain: dict[str, Any]) -> None:
    split, _ = operations.grow(
        mixture(), OPERATION.parse({"kind": "grow", "num_experts": 8, "method": "split"})
    )
    told = follows(split, OPERATION.parse(plain))
    assert split.spec.moe is not None and {len(made_of_F) for made_of_F in told.made_of_LF} == {6}
    assert numbering(split.spec.moe, OPERATION.parse(plain), {}) is None


@pytest.mark.parametrize("plain", GROUPS, ids=str)
def test_groups_are_numbered_by_group(plain: dict[str, Any]) -> None:
    follows(grouped(), OPERATION.parse(plain))


def test_a_wrong_numbering_would_be_seen() -> None:
    model = mixture()
    rows = rows_of(model)[0]
    assert torch.linalg.matrix_rank(rows) == len(rows)


def test_copies_gone_and_scattered_experts() -> None:
    moe = mixture().spec.moe
    assert moe is not None

    def forward(*, moe: MoeSpec = moe, **plain: Any) -> Any:
        told = numbering(moe, OPERATION.parse(plain), {})
        return None if told is None else told.forward()

    assert forward(kind="add", source=1) == ((0,), (1, 4), (2,), (3,))
    assert forward(kind="remove", expert=1) == ((0,), (), (1,), (2,))
    assert forward(kind="remove", expert=[1, 2]) == ((0,), None, None, (2,))
    assert forward(kind="merge", first=3, second=0) == ((2,), (0,), (1,), (2,))
    assert forward(kind="release_twins") == forward(kind="dequantise") == ((0,), (1,), (2,), (3,))
    assert forward(kind="remove") is None and forward(kind="distil", num_experts=2) is None


def test_the_way_back_names_the_sources() -> None:
    moe = mixture().spec.moe
    assert moe is not None
    merged = numbering(moe, OPERATION.parse({"kind": "merge", "first": 3, "second": 0}), {})
    assert merged is not None and merged.back() == ((1,), (2,), (0, 3))


def test_layers_of_a_student_are_named_by_those_of_its_teacher() -> None:
    model = mixture(moe_layers=(1, 2))
    operation = OPERATION.parse({"kind": "distil", "num_experts": 4, "num_hidden_layers": 2, "steps": 0})
    student, report = _perform_one(model, operation, some_prompts())
    assert model.spec.moe is not None
    told = numbering(model.spec.moe, operation, report)
    assert told is not None and told.layers is not None
    for place, layer in enumerate(told.layers):
        blocks = (one.layers[at] for one, at in ((student, place), (model, layer)))
        assert torch.equal(*(block.get_parameter("attention.qkv_proj.weight") for block in blocks))
    assert told.layers_forward() == {layer: place for place, layer in enumerate(told.layers)}
    assert told.layers_back() == dict(enumerate(told.layers))
    assert numbering(model.spec.moe, operation, {"groups": report["groups"]}) is None


def test_the_first_of_composed_mixtures_keeps_its_numbers() -> None:
    models, operation = (
        [mixture(1), mixture(2)],
        OPERATION.parse({"kind": "compose", "domains": ["law", "code"]}),
    )
    composed, report = compose(models, operation, some_prompts(per_domain=8))
    assert models[0].spec.moe is not None and composed.spec.moe is not None
    told = numbering(models[0].spec.moe, operation, report)
    assert told is not None and len(told.made_of_LF[0]) == composed.spec.moe.num_experts
    assert told.forward() == ((0,), (1,), (2,), (3,))
    own = [per_expert(layer)["experts.down_EDF"][:4] for layer in composed.moe_layers()]
    first = [per_expert(layer)["experts.down_EDF"] for layer in models[0].moe_layers()]
    assert all(torch.equal(*pair) for pair in zip(own, first, strict=True))
