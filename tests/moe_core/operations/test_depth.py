"""Layers that change little go, and what is left is the teacher's, layer for layer."""

from __future__ import annotations

import json

import pytest
import torch

import moe_core
from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.context import RoutingContext
from moe_core.model.init import random_decoder
from moe_core.operations import distil
from moe_core.operations.depth import influence, with_layers
from moe_core.operations.distil import distillation_loss, group_divergence, merged_student
from moe_core.operations.parts import tensors_of
from moe_core.spec import ModelSpec, cost_of
from moe_core.spec.fewer_layers import kept_counts, kept_layers
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import DistilSpec
from tests.moe_core.operations.models import IDS, distance, mixture_spec, some_prompts
from tests.moe_core.tiny import STD

EXPERTS = (0, 2, 3, 5)


def deep(**changes: object) -> Decoder:
    """Six layers, experts in four of them."""
    spec = mixture_spec().model_dump()
    spec |= {"num_hidden_layers": 6, "moe": spec["moe"] | {"moe_layers": EXPERTS}, **changes}
    return random_decoder(ModelSpec.parse(spec), 5, STD)


def silenced(model: Decoder, layers: tuple[int, ...]) -> Decoder:
    """The model with layers that add nothing to the residual stream."""
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            if name.startswith(tuple(f"layers.{layer}." for layer in layers)) and (
                "o_proj" in name or "down" in name
            ):
                tensor.zero_()
    return model


def test_influence_is_what_a_block_turns_the_stream_by_padding_left_out() -> None:
    model, prompts = deep(), some_prompts()
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _b, args, out: seen.append(torch.stack([args[0], out])))
        for block in model.layers
    ]
    with torch.no_grad():
        model(prompts.ids_NS)
    for hook in hooks:
        hook.remove()
    for found, (read_TD, left_TD) in zip(influence(model, prompts).tolist(), seen, strict=True):
        pairs = [
            (a.double(), b.double())
            for a, b, real in zip(read_TD, left_TD, prompts.real_T, strict=True)
            if real
        ]
        by_hand = [1.0 - float(a @ b / a.norm() / b.norm()) for a, b in pairs]
        assert found == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_layers_that_add_nothing_go_first_and_nothing_is_lost_with_them() -> None:
    # One layer of experts and a dense one: the proportion of four to two is that of three to one when four are left.
    model, prompts = silenced(deep(), (1, 3)), some_prompts()
    assert influence(model, prompts)[[1, 3]].abs().max() < 1e-6
    keep = kept_layers(model.spec, 4, influence(model, prompts).tolist())
    assert keep == [0, 2, 4, 5]
    smaller = with_layers(model, keep)
    assert smaller.spec.num_hidden_layers == 4 and smaller.spec.moe is not None
    assert smaller.spec.moe.moe_layers == (0, 1, 3)
    assert distance(model, smaller) < 2e-6
    # Another choice of layers is another function.
    assert distance(model, with_layers(model, [0, 1, 2, 3])) > 1e-2


def test_every_tensor_of_a_kept_layer_is_the_teachers_and_tables_of_layers_are_numbered_anew() -> None:
    plain = mixture_spec().model_dump()
    sliding = plain["attention"] | {"sliding_window": 4, "sliding_layers": (1, 3, 4)}
    model = deep(attention=sliding, dense_clamps=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    smaller = with_layers(model, [0, 3, 4, 5])
    assert smaller.spec.attention.sliding_layers == (1, 2)
    assert smaller.spec.dense_clamps == (1.0, 4.0, 5.0, 6.0)
    ours, theirs = tensors_of(smaller), tensors_of(model)
    for at, layer in enumerate((0, 3, 4, 5)):
        for name, tensor in ours.items():
            if name.startswith(f"layers.{at}."):
                assert torch.equal(tensor, theirs[name.replace(f"layers.{at}.", f"layers.{layer}.", 1)])


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 6])
def test_what_is_foretold_of_a_shallow_student_is_what_it_costs(num_layers: int) -> None:
    spec = DistilSpec(num_experts=2, num_hidden_layers=num_layers, steps=0)
    model = deep()
    student, report = distil(model, spec, some_prompts())
    assert student.spec.num_hidden_layers == len(report["layers"]) == num_layers
    assert cost_of(student.spec).as_dict(16) == cost_of(foreseen(model.spec, spec)).as_dict(16)
    assert kept_counts(model.spec, num_layers)[0] == len(student.spec.moe.moe_layers)  # type: ignore[union-attr]
    json.dumps(report)


WINDOW = mixture_spec().model_dump()["attention"] | {"sliding_window": 4}


@pytest.mark.parametrize("layer", [0, 1, 5])
@pytest.mark.parametrize("what", ["sliding_window", "expert_clamps", "dense_clamps"])
@pytest.mark.parametrize("stays", [True, False])
def test_what_one_layer_alone_has_goes_with_it_and_stays_with_it(what: str, layer: int, stays: bool) -> None:
    bounds = tuple(0.5 if at == layer else 0.0 for at in range(6))
    changes = (
        {"attention": WINDOW | {"sliding_layers": (layer,)}} if what == "sliding_window" else {what: bounds}
    )
    idle = [at for at in range(6) if (at == layer) is not stays]
    model = silenced(deep(**changes), tuple(idle))
    operation = DistilSpec(num_experts=4, num_hidden_layers=2, steps=0)
    told = foreseen(model.spec, operation)
    student, report = distil(model, operation, some_prompts())
    assert (layer in report["layers"]) is stays
    if what == "sliding_window":
        assert student.spec.attention.sliding_window == (4 if stays else None)
        assert len(student.spec.attention.sliding_layers) == stays
    else:
        assert sorted(getattr(student.spec, what)) == ([0.0, 0.5] if stays else [])
    assert told.num_hidden_layers == 2


def test_routing_is_learnt_from_the_teachers_own_layers() -> None:
    model, prompts = deep(), some_prompts()
    keep = [0, 3, 5]
    student, groups = merged_student(with_layers(model, keep), DistilSpec(num_experts=2, steps=0), prompts)
    taught, learnt = {}, {}
    with torch.no_grad():
        model(prompts.ids_NS, RoutingContext(observe=taught.__setitem__))
        student(prompts.ids_NS, RoutingContext(observe=learnt.__setitem__))
        spec = DistilSpec(num_experts=2, logit_weight=0.0, label_weight=0.0, router_weight=1.0)
        loss = float(distillation_loss(model, student, groups, prompts, spec, keep))
    pairs = zip((0, 3, 5), (0, 1, 2), groups, strict=True)
    right = [float(group_divergence(taught[old], learnt[new], of, prompts.real_T)) for old, new, of in pairs]
    assert loss == pytest.approx(sum(right) / 3, rel=1e-5)


def test_a_shallow_student_is_saved_and_loaded(tmp_path) -> None:
    student, _ = distil(deep(), DistilSpec(num_experts=2, num_hidden_layers=3, steps=2), some_prompts())
    back = moe_core.load(moe_core.save(student, tmp_path / "student"), dtype="float32")
    with torch.no_grad():
        assert torch.equal(back(IDS), student(IDS))


def test_more_layers_than_the_teacher_has_are_refused_with_their_number() -> None:
    with pytest.raises(SpecError, match="9 is more than 6") as refused:
        distil(deep(), DistilSpec(num_experts=2, num_hidden_layers=9), some_prompts())
    assert refused.value.complaints[0][0] == ("num_hidden_layers",)
