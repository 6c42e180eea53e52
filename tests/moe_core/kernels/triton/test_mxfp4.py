"""Experts in mxfp4 against the same weights widened, in float64; where the interpreter has `tl.dot_scaled`, through it."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.mxfp4 import Mxfp4, dequantise_mxfp4, quantise_mxfp4
from moe_core.kernels.torch_gated import gated_experts_torch
from moe_core.kernels.triton import mxfp4 as mxfp4_file
from moe_core.kernels.triton.align import align
from moe_core.kernels.triton.chip import chip_of
from moe_core.kernels.triton.mxfp4 import mxfp4_experts, mxfp4_gemm, supports
from moe_core.kernels.triton.tiles import mxfp4_tile
from tests.moe_core.kernels.triton.layer import TOLERANCE, Layer, error

GATINGS = [PLAIN, Gating("clamped", limit=0.8), Gating("clamped_silu", limit=0.5)]
# E4M3 has three bits of mantissa; both products round to it, and the interpreter truncates.
MXFP8_TOLERANCE = 0.1


def both(
    layer: Layer, gating: Gating = PLAIN, *, biased: bool = False, activations="plain"
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel says, and the truth."""
    gate_up, down = quantise_mxfp4(layer.gate_up), quantise_mxfp4(layer.down)
    biases = [None, None]
    if biased:
        experts, width, num_ff = layer.down.shape
        chance = torch.Generator().manual_seed(5)
        biases = [
            torch.randn(experts, rows, generator=chance).to(layer.hidden) for rows in (2 * num_ff, width)
        ]
    found = mxfp4_experts(
        layer.hidden, gate_up, down, layer.ids, layer.weights, gating, *biases, activations=activations
    )
    wide = [dequantise_mxfp4(weight, torch.float64) for weight in (gate_up, down)]
    biases64 = [bias if bias is None else bias.double() for bias in biases]
    arguments = (layer.hidden.double(), *wide, layer.ids, layer.weights.double(), gating, *biases64)
    return found, gated_experts_torch(*arguments)


@pytest.mark.parametrize("gating", GATINGS, ids=lambda gating: gating.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_codes_give_what_widened_weights_give(device, gating, dtype) -> None:
    # 96 and 160 leave a short last step.
    found, truth = both(Layer.random(device, 5, 96, 3, 2, 160, dtype), gating, biased=gating is not PLAIN)
    assert error(found, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_many_rows_take_wide_tiles(device, dtype) -> None:
    found, truth = both(Layer.random(device, 80, 64, 2, 1, 96, dtype), GATINGS[1], biased=True)
    assert error(found, truth) < TOLERANCE[dtype]


def test_activations_in_mxfp8_stay_within_their_rounding(device) -> None:
    layer = Layer.random(device, 5, 96, 3, 2, 160, torch.float16)
    found, truth = both(layer, activations="mxfp8")
    plain, _ = both(layer)
    assert 1e-3 < error(found, truth) < MXFP8_TOLERANCE
    assert error(plain, truth) < TOLERANCE[torch.float16]


def test_activations_that_are_mxfp8_already_are_multiplied_exactly(device) -> None:
    chance = torch.Generator().manual_seed(7)
    whole = torch.randint(-14, 15, (20, 3, 32), generator=chance).float()
    # Four bits, and a power of two for each group; 15 would lie above the largest of E4M3, 448 = 14 · 2^5.
    x = torch.ldexp(whole, torch.randint(-9, 9, (20, 3, 1), generator=chance)).flatten(1).to(device)
    weight = quantise_mxfp4(torch.randn(2, 48, 96, generator=chance).to(device))
    ids = torch.randint(0, 2, (20, 1), generator=chance).to(device)
    tile = mxfp4_tile(20, 2, x.dtype, chip_of(device))
    rows = align(ids, 2, tile.block_m)
    order = rows.choice_R.long()
    out = mxfp4_gemm(x[order], weight, None, rows, tile, gating=None, activations="mxfp8")
    truth = torch.einsum("tk,tok->to", x.double(), dequantise_mxfp4(weight, torch.float64)[ids[:, 0]])
    assert error(out, truth) < TOLERANCE[torch.float32]


def test_where_there_is_no_scaled_product_the_kernels_own_widening_gives_the_same(
    device, monkeypatch
) -> None:
    layer = Layer.random(device, 5, 96, 3, 2, 160, torch.float16)
    scaled, truth = both(layer)
    monkeypatch.setattr(mxfp4_file, "dots_scaled", lambda: False)
    assert error(both(layer)[0], truth) < TOLERANCE[torch.float16]
    assert error(scaled, truth) < TOLERANCE[torch.float16]


def test_every_code_and_exponent_is_multiplied_exactly(device) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(1, 1, 2).to(device)
    exponents = torch.arange(100, 132, dtype=torch.uint8).view(1, 16, 2).to(device)
    weight = Mxfp4(codes.contiguous(), exponents)
    x = torch.zeros(64, 64, device=device)
    x.fill_diagonal_(1.0)
    ids = torch.zeros(64, 1, dtype=torch.int64, device=device)
    tile = mxfp4_tile(64, 1, x.dtype, chip_of(device))
    out = mxfp4_gemm(x, weight, None, align(ids, 1, tile.block_m), tile, gating=None)
    assert torch.equal(out, dequantise_mxfp4(weight, torch.float32)[0].t())


def test_empty_places_and_empty_experts_are_left_out(device) -> None:
    layer = Layer.random(device, 9, 64, 4, 2, 32)
    layer.ids[layer.ids == 3] = -1
    found, truth = both(layer, biased=True)
    assert error(found, truth) < TOLERANCE[torch.float32]


def test_no_token_gives_no_row(device) -> None:
    assert both(Layer.random(device, 0, 64, 4, 2, 32))[0].shape == (0, 64)


def test_it_refuses_what_does_not_fit(device) -> None:
    layer = Layer.random(device, 3, 64, 4, 2, 32)
    gate_up, down = quantise_mxfp4(layer.gate_up), quantise_mxfp4(layer.down)
    arguments = (layer.hidden, gate_up, down, layer.ids, layer.weights)
    with pytest.raises(SpecError, match="must be"):
        mxfp4_experts(layer.hidden, down, gate_up, layer.ids, layer.weights)
    with pytest.raises(SpecError, match="gelu"):
        mxfp4_experts(*arguments, Gating("gelu"))
    with pytest.raises(SpecError, match="bias"):
        mxfp4_experts(*arguments, PLAIN, torch.zeros(4, 3, device=device))
    with pytest.raises(SpecError, match="exponent for each 32"):
        short = Mxfp4(gate_up.codes, gate_up.exponents[..., :1].contiguous())
        mxfp4_experts(layer.hidden, short, down, layer.ids, layer.weights)


def test_the_cpu_never_takes_it() -> None:
    layer = Layer.random(torch.device("cpu"), 3, 64, 4, 2, 32)
    assert not supports(layer.hidden, layer.ids, PLAIN)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the interpreter would take hours")
@pytest.mark.parametrize("tokens", [1, 16, 128, 1000])
def test_real_sizes_on_a_gpu(device, tokens) -> None:
    layer = Layer.random(device, tokens, 1024, 16, 4, 768, torch.bfloat16)
    found, truth = both(layer, GATINGS[1], biased=True)
    assert error(found, truth) < TOLERANCE[torch.bfloat16]
