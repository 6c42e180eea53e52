"""The native step reads a gate's maps in bfloat16 where that is all they hold, and answers to the bit as by float32."""

from __future__ import annotations

import pytest
import torch

from moe_core.engine import native_plan
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.plan import narrowed
from moe_core.model.decoder import Decoder
from moe_core.spec import ModelSpec
from tests.moe_core.engine.native_models import GATES, SPECS, build, engine_of
from tests.moe_core.engine.test_native_step import assert_alike, steps

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
EVERY = {
    "mixtral": SPECS["mixtral"],
    "biased": SPECS["softmax whose choice is biased"],
    "hierarchical": GATES["hierarchical"],
    "hash": GATES["hash"],
}


def exact(spec: ModelSpec) -> Decoder:
    """A model whose gates hold what bfloat16 holds, as checkpoints do."""
    model = build(spec, (4, 4, 8))
    for layer in model.moe_layers():
        for tensor in layer.router.tensors.values():
            tensor.data.copy_(tensor.data.bfloat16())
    return model


@pytest.mark.parametrize("name", EVERY)
def test_maps_of_bfloat16_answer_to_the_bit_as_those_of_float32(monkeypatch, name: str) -> None:
    engine = engine_of(exact(EVERY[name]), monkeypatch)
    # A dense layer has no map, nor has a table.
    assert all(
        bool(layer.gate.narrow) is bool(layer.gate.router) for layer in engine.runner.native.held.layers
    )
    found = steps(engine, by_torch=False)
    monkeypatch.setattr(native_plan, "narrowed", dict)
    engine = engine_of(exact(EVERY[name]), monkeypatch)
    assert not any(layer.gate.narrow for layer in engine.runner.native.held.layers)
    wanted = steps(engine, by_torch=False)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_a_gate_that_was_tuned_in_float32_is_read_in_float32_beside_others_that_are_not(monkeypatch) -> None:
    model = exact(SPECS["mixtral"])
    # As little as one number, by as little as float32 tells.
    weight_ED = next(iter(model.moe_layers())).router.tensors["weight"].data
    weight_ED[-1, -1] = torch.nextafter(weight_ED[-1, -1], weight_ED.new_tensor(9.0))
    engine = engine_of(model, monkeypatch)
    assert [layer.gate.narrow for layer in engine.runner.native.held.layers][:2] == [0, 1]
    assert_alike(steps(engine, by_torch=False), steps(engine, by_torch=True))


@pytest.mark.parametrize("changed", ["weight", "domain_weight", "group_weight"])
def test_of_a_hierarchy_all_maps_are_narrow_or_none(changed: str) -> None:
    tensors = {name: torch.ones(4, 8) for name in ("weight", "domain_weight", "group_weight", "bias")}
    assert [tensor.dtype for tensor in narrowed(tensors).values()] == [torch.bfloat16] * 3 + [torch.float32]
    tensors[changed][2, 3] = 1.0 + 2.0**-20
    assert all(tensor is tensors[name] for name, tensor in narrowed(tensors).items())


def test_nan_and_signed_zeros_come_through_and_smaller_payloads_do_not() -> None:
    weight_ED = torch.tensor([[float("nan"), -0.0, float("-inf"), 2.0**-133]])
    narrow_ED = narrowed({"weight": weight_ED})["weight"]
    assert narrow_ED.dtype is torch.bfloat16
    assert narrow_ED[0, 0].isnan()
    assert torch.equal(narrow_ED[0, 1:].float().view(torch.int32), weight_ED[0, 1:].view(torch.int32))
    assert narrowed({"weight": torch.tensor([[2.0**-140]])})["weight"].dtype is torch.float32
