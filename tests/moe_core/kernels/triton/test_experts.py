"""The whole layer, forward and every gradient, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moe_core.kernels.reference import swiglu_experts_reference
from moe_core.kernels.triton.experts import swiglu_experts_triton
from tests.moe_core.kernels.triton.layer import Layer, assert_results_agree, error

# T, D, E, K, F: odd widths, one row tile and several, small and large tiles.
SIZES = {
    "one token": (1, 32, 4, 2, 32),
    "odd": (13, 35, 5, 3, 37),
    "one expert": (9, 24, 1, 1, 40),
    "every expert": (6, 16, 3, 3, 16),
    "wide tiles": (150, 24, 1, 1, 24),
}


@pytest.mark.parametrize("name", SIZES)
def test_forward_and_gradients_are_the_truth(device, name) -> None:
    assert_results_agree(Layer.random(device, *SIZES[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["odd", "wide tiles"])
def test_half_precision_stays_within_its_rounding(device, dtype, name) -> None:
    assert_results_agree(Layer.random(device, *SIZES[name], dtype))


def test_the_readable_reference_agrees(device) -> None:
    layer = Layer.random(device, 5, 24, 4, 2, 24)
    wide = (layer.hidden.double(), layer.gate_up.double(), layer.down.double())
    truth = swiglu_experts_reference(*wide, layer.ids, layer.weights.double())
    assert error(layer.forward(), truth) < 2e-6


def test_no_token_gives_no_row_and_zero_gradients(device) -> None:
    layer = Layer.random(device, 0, 16, 4, 2, 16)
    out, hidden, gate_up, down, weights = layer.results()
    assert out.shape == hidden.shape == (0, 16)
    assert weights.shape == (0, 2)
    assert not gate_up.any()
    assert not down.any()


def test_all_tokens_may_go_to_one_expert(device) -> None:
    layer = Layer.random(device, 37, 16, 4, 1, 16)
    assert_results_agree(replace(layer, ids=torch.full_like(layer.ids, 2)))


def test_an_expert_without_rows_gets_a_gradient_of_zeros(device) -> None:
    layer = Layer.random(device, 12, 16, 4, 2, 16)
    layer = replace(layer, ids=layer.ids % 3)
    assert_results_agree(layer)
    assert not layer.results()[2][3].any()


def test_empty_places_add_nothing_whatever_their_weight(device) -> None:
    layer = Layer.random(device, 11, 16, 4, 3, 16)
    ids = layer.ids.clone()
    ids[::2, 1], ids[5] = -1, -1
    layer = replace(layer, ids=ids)
    assert_results_agree(layer)
    nan = torch.where(ids < 0, float("nan"), layer.weights)
    assert torch.equal(replace(layer, weights=nan).forward(), layer.forward())
    assert not layer.forward()[5].any()


def test_nan_in_one_token_touches_no_other(device) -> None:
    layer = Layer.random(device, 9, 16, 4, 2, 16)
    hidden = layer.hidden.clone()
    hidden[4, 3] = float("nan")
    sick, sound = replace(layer, hidden=hidden).forward(), layer.forward()
    assert sick[4].isnan().all()
    others = torch.arange(9, device=device) != 4
    assert torch.equal(sick[others], sound[others])


def test_the_same_call_gives_the_same_bits(device) -> None:
    layer = Layer.random(device, 40, 24, 4, 2, 24)
    for first, second in zip(layer.results(), layer.results(), strict=True):
        assert torch.equal(first, second)


def test_frozen_weights_get_no_gradient(device) -> None:
    layer = Layer.random(device, 7, 16, 4, 2, 16)
    weights = layer.weights.clone().requires_grad_()
    out = swiglu_experts_triton(layer.hidden, layer.gate_up, layer.down, layer.ids, weights)
    out.sum().backward()
    assert weights.grad is not None
    truth = layer.weights.double().requires_grad_()
    wide = (layer.hidden.double(), layer.gate_up.double(), layer.down.double())
    swiglu_experts_reference(*wide, layer.ids, truth).sum().backward()
    assert error(weights.grad, truth.grad) < 2e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the interpreter would take hours")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 576, 8, 2, 1536), (16, 1024, 64, 8, 384), (1000, 576, 8, 2, 1536), (2048, 1024, 64, 8, 384),
     (333, 1001, 7, 3, 333), (4096, 512, 4, 2, 512)],
    ids=str,
)  # fmt: skip
def test_real_sizes_on_a_gpu(device, shape, dtype) -> None:
    assert_results_agree(Layer.random(device, *shape, dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: 131,072 tokens")
def test_a_huge_batch_needs_no_more_than_32_bits_anywhere(device) -> None:
    layer = Layer.random(device, 131_072, 2048, 16, 8, 1536, torch.bfloat16)
    # 1,048,576 rows of 2,048 and 1,536: more than 2^31 elements in one buffer.
    out = layer.forward()
    some = torch.tensor([0, 1, 65_535, 131_071], device=device)
    part = replace(layer, hidden=layer.hidden[some], ids=layer.ids[some], weights=layer.weights[some])
    assert error(out[some], part.forward64()) < 2e-2
    assert out.isfinite().all()
