"""Experts whose weights lie in the slots of a pool: to the bit what they give where they lie by their numbers."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.kernels import dispatch
from moe_core.kernels.packing import Packed, quantise
from moe_core.kernels.reference import swiglu_experts_reference
from moe_core.kernels.torch_grouped import swiglu_experts_torch
from moe_core.kernels.triton.align import MAX_EXPERTS
from moe_core.kernels.triton.experts import swiglu_experts_triton
from moe_core.kernels.triton.packed import packed_swiglu_experts
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.kernels.triton.layer import Layer

KERNELS = {
    "triton": swiglu_experts_triton,
    "torch": swiglu_experts_torch,
    "reference": swiglu_experts_reference,
}
# Few choices and many: one block, and chunks. Then a pool of more slots than one layer may have experts.
SIZES = {
    "decoding": ((5, 24, 6, 2, 20), 11),
    "a prompt": ((150, 24, 6, 2, 20), 6),
    "a large pool": ((9, 16, 4, 2, 16), MAX_EXPERTS + 100),
}


def pooled(weight: torch.Tensor, slots: torch.Tensor, num_slots: int) -> torch.Tensor:
    """The weights in their slots, and in the others what must not be read."""
    filler = float("nan") if weight.is_floating_point() else 255
    pool = torch.full((num_slots, *weight.shape[1:]), filler, dtype=weight.dtype, device=weight.device)
    pool[slots[slots >= 0]] = weight[slots >= 0]
    return pool


def slots_of(layer: Layer, num_slots: int, seed: int) -> torch.Tensor:
    """Any slots, and none for experts without rows."""
    order = torch.randperm(num_slots, generator=torch.Generator().manual_seed(seed))
    slots = order[: layer.down.shape[0]].to(layer.ids.device)
    used = torch.isin(torch.arange(len(slots), device=slots.device), layer.ids)
    return torch.where(used, slots, -1)


def some_empty(layer: Layer) -> Layer:
    """Expert 1 gets no row, and some places hold none."""
    layer.ids[layer.ids == 1] = -1
    return layer


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_pool_changes_no_bit(device, kernel, size, dtype) -> None:
    sizes, num_slots = SIZES[size]
    layer = some_empty(Layer.random(device, *sizes, dtype))
    slots = slots_of(layer, num_slots, len(size))
    assert (slots < 0).any()
    pool = [pooled(weight, slots, num_slots) for weight in (layer.gate_up, layer.down)]
    rest = (layer.ids, layer.weights)
    wanted = KERNELS[kernel](layer.hidden, layer.gate_up, layer.down, *rest)
    assert torch.equal(KERNELS[kernel](layer.hidden, *pool, *rest, slots), wanted)
    named = dispatch.swiglu_experts(layer.hidden, *pool, *rest, kernel=kernel, slots_E=slots)
    assert torch.equal(named, wanted)


@torch.no_grad()
def test_codes_in_a_pool_change_no_bit(device) -> None:
    spec = ExpertQuantSpec(bits=4, group_size=32, symmetric=False)
    layer = some_empty(Layer.random(device, 7, 70, 5, 2, 45))
    slots = slots_of(layer, 9, 3)
    codes = [quantise(weight, spec) for weight in (layer.gate_up, layer.down)]
    pool = [Packed(*(pooled(part, slots, 9) for part in (one.codes, one.scales, one.zeros))) for one in codes]
    wanted = packed_swiglu_experts(layer.hidden, *codes, 45, spec, layer.ids, layer.weights)
    found = packed_swiglu_experts(layer.hidden, *pool, 45, spec, layer.ids, layer.weights, slots)
    assert torch.equal(found, wanted)


def test_what_does_not_fit_a_pool_is_refused(device) -> None:
    layer = Layer.random(device, 4, 16, 4, 2, 16)
    call = (layer.hidden, layer.gate_up, layer.down, layer.ids, layer.weights)
    slots = torch.arange(4, device=device)
    for wrong in (slots.int(), slots.view(2, 2), torch.arange(5, device=device)):
        with pytest.raises(SpecError, match=r"must be \(E,\) int64"):
            dispatch.swiglu_experts(*call, slots_E=wrong)
    with pytest.raises(SpecError, match="can answer, not learn"):
        dispatch.swiglu_experts(layer.hidden.requires_grad_(), *call[1:], slots_E=slots)


def test_a_kernel_that_knows_no_pool_is_passed_over_and_not_taken_by_name(device, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_KERNELS", list(dispatch._KERNELS))
    dispatch.register(dispatch.RegisteredKernel("own", lambda *tensors: tensors[0], lambda *tensors: True))
    layer = Layer.random(device, 4, 16, 4, 2, 16)
    call = (layer.hidden, layer.gate_up, layer.down, layer.ids, layer.weights)
    slots = torch.arange(4, device=device)
    assert dispatch.swiglu_experts(*call) is layer.hidden
    wanted = layer.forward64().to(layer.hidden.dtype)
    torch.testing.assert_close(dispatch.swiglu_experts(*call, slots_E=slots), wanted)
    with pytest.raises(SpecError, match="'own' does not read experts from a pool"):
        dispatch.swiglu_experts(*call, kernel="own", slots_E=slots)
