"""Packed experts from their codes against the same weights widened, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.kernels.packing import Packed, dequantise, quantise
from moe_core.kernels.torch_grouped import swiglu_experts_torch
from moe_core.kernels.triton.packed import (
    MAX_LINEAR_ROWS,
    packed_linear,
    packed_swiglu_experts,
    supports,
)
from moe_core.model.packed_linear import PackedLinear
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.moe_core.kernels.triton.layer import TOLERANCE, Layer, error, surrounded

SPECS = [
    ExpertQuantSpec(bits=4, group_size=32, symmetric=True),
    ExpertQuantSpec(bits=4, group_size=64, symmetric=False),
    ExpertQuantSpec(bits=8, group_size=128, symmetric=True),
    # Several steps that share a scale.
    ExpertQuantSpec(bits=8, group_size=256, symmetric=False),
    ExpertQuantSpec(bits=4, group_size=768, symmetric=True),
    # Scales are read as they are stored, whatever they have in common.
    ExpertQuantSpec(bits=4, group_size=32, super_group_size=256),
]


def both(layer: Layer, spec: ExpertQuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel says, and the truth."""
    gate_up, down = quantise(layer.gate_up, spec), quantise(layer.down, spec)
    num_ff, width = layer.down.shape[2], layer.hidden.shape[1]
    found = packed_swiglu_experts(layer.hidden, gate_up, down, num_ff, spec, layer.ids, layer.weights)
    wide = [
        dequantise(w, n, spec, layer.hidden.dtype).double() for w, n in ((gate_up, width), (down, num_ff))
    ]
    return found, swiglu_experts_torch(layer.hidden.double(), *wide, layer.ids, layer.weights.double())


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.bits}-bit/{s.group_size}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_codes_give_what_widened_weights_give(device, spec, dtype) -> None:
    # Widths leave a short last group, and an odd row leaves half a byte.
    width, num_ff = (70, 45) if spec.group_size <= 128 else (550, 805)
    found, truth = both(Layer.random(device, 7, width, 3, 2, num_ff, dtype), spec)
    assert error(found, truth) < TOLERANCE[dtype]


def test_empty_places_and_empty_experts_are_left_out(device) -> None:
    layer = Layer.random(device, 9, 64, 4, 2, 32)
    layer.ids[layer.ids == 3] = -1
    found, truth = both(layer, SPECS[0])
    assert error(found, truth) < TOLERANCE[torch.float32]


def test_no_token_gives_no_row(device) -> None:
    assert both(Layer.random(device, 0, 64, 4, 2, 32), SPECS[0])[0].shape == (0, 64)


def test_it_refuses_codes_of_another_width(device) -> None:
    layer = Layer.random(device, 3, 64, 4, 2, 32)
    gate_up, down = quantise(layer.gate_up, SPECS[0]), quantise(layer.down, SPECS[0])
    with pytest.raises(SpecError, match="must be"):
        packed_swiglu_experts(layer.hidden, down, gate_up, 32, SPECS[0], layer.ids, layer.weights)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [96, 160, 192, 320])
def test_it_refuses_groups_that_steps_do_not_fill(device, bits: int, group: int) -> None:
    """The specification has none of them; a kernel that took one would give columns the scale of others."""
    spec = ExpertQuantSpec.model_construct(bits=bits, group_size=group, symmetric=True)
    weight = quantise(torch.randn(5, 2 * group), spec)
    packed = Packed(weight.codes.to(device), weight.scales.to(device), None)
    with pytest.raises(SpecError, match=f"groups of {group} are no power of two"):
        packed_linear(torch.randn(3, 2 * group, device=device), packed, spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.bits}-bit/{s.group_size}")
@pytest.mark.parametrize("num_rows", [1, 9, 70])
def test_a_packed_map_is_one_expert_with_all_rows(device, monkeypatch, spec, num_rows) -> None:
    chance = torch.Generator().manual_seed(num_rows)
    linear = PackedLinear(70, 45, spec, torch.float32, bias=True).to(device)
    with torch.no_grad():
        linear.pack(torch.randn(45, 70, generator=chance).to(device))
        linear.bias.copy_(torch.randn(45, generator=chance))
    x = surrounded(torch.randn(num_rows, 70, generator=chance).to(device))
    truth = x.double() @ linear.widened(torch.float32).double().t() + linear.bias.double()
    # The interpreter runs on CPU tensors what a GPU would take.
    monkeypatch.setattr(PackedLinear, "_on_codes", lambda self, x: True)
    monkeypatch.setattr(PackedLinear, "widened", None)
    with torch.no_grad():
        assert error(linear(x), truth) < TOLERANCE[torch.float32]
        assert error(linear(x[:0]), truth[:0]) == 0.0


def test_a_map_refuses_codes_of_another_width(device) -> None:
    weight = quantise(torch.randn(45, 70, device=device), SPECS[0])
    with pytest.raises(SpecError, match="must be"):
        packed_linear(torch.zeros(3, 64, device=device), weight, SPECS[0])
    with pytest.raises(SpecError, match="last stride of 1"):
        packed_linear(torch.zeros(70, 3, device=device).t(), weight, SPECS[0])


def test_only_few_rows_on_a_gpu_take_a_map_s_codes() -> None:
    spec = SPECS[0]
    linear = PackedLinear(64, 32, spec, torch.float32)
    assert not linear._on_codes(torch.zeros(2, 64))

    def on_a_gpu(num_rows: int) -> SimpleNamespace:
        shape = (num_rows, 64)
        return SimpleNamespace(is_cuda=True, ndim=2, shape=shape, dtype=torch.float16, requires_grad=False)

    assert linear._on_codes(on_a_gpu(MAX_LINEAR_ROWS))
    assert not linear._on_codes(on_a_gpu(MAX_LINEAR_ROWS + 1))


def test_the_cpu_never_takes_it() -> None:
    layer = Layer.random(torch.device("cpu"), 3, 64, 4, 2, 32)
    assert not supports(layer.hidden, layer.ids)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the interpreter would take hours")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.bits}-bit/{s.group_size}")
@pytest.mark.parametrize("tokens", [1, 16, 128, 1000])
def test_real_sizes_on_a_gpu(device, spec, tokens) -> None:
    found, truth = both(Layer.random(device, tokens, 1024, 16, 4, 768, torch.bfloat16), spec)
    assert error(found, truth) < TOLERANCE[torch.bfloat16]
