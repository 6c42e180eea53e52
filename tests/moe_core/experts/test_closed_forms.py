"""Zero and constant experts against a closed form in numpy: the softmax of two scores is the logistic function of their difference.

a · x + b · v with (a, b) = softmax(W x) is v + (x − v) / (1 + exp((w₁ − w₀) · x)); a zero expert adds nothing.
Source: Jin et al. 2024, "MoE++", arXiv 2410.07348, section 3.1.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_core.experts import MixedExperts
from moe_core.routers import Routing
from moe_core.spec.expert_kinds import ConstantExpert, ZeroExpert

T, D, K = 23, 12, 2
KINDS = (ConstantExpert(), ZeroExpert(), ConstantExpert(), ZeroExpert())


def logistic(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e⁻ᶻ), by the hyperbolic tangent, which does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def shares(x_TD: np.ndarray, mix_2D: np.ndarray) -> np.ndarray:
    """(T, 1) how much of the token itself a constant expert passes on."""
    return logistic(x_TD @ (mix_2D[0] - mix_2D[1]))[:, None]


def drawn(scale: float, dtype: torch.dtype) -> tuple[MixedExperts, torch.Tensor, Routing]:
    chance = torch.Generator().manual_seed(4)
    layer = MixedExperts(KINDS, D, dtype)
    with torch.no_grad():
        layer.weights_N.copy_(torch.randn(layer.weights_N.shape, generator=chance))
        for expert in (0, 2):
            layer.tensors(expert)["mix.weight"].mul_(scale)
    ids_TK = torch.rand(T, 4, generator=chance).argsort(-1)[:, :K]
    # Two zero experts, and a zero expert beside an empty place.
    ids_TK[3], ids_TK[5] = torch.tensor([1, 3]), torch.tensor([3, -1])
    weights_TK, nothing_TE = torch.rand(T, K, generator=chance), torch.zeros(T, 4)
    x_TD = torch.randn(T, D, generator=chance).to(dtype)
    return layer, x_TD, Routing(ids_TK, weights_TK, nothing_TE, nothing_TE)


# Scores in the hundreds, which choose one of the two, are only as good as the sums that make them.
PRECISIONS = [
    *((torch.float64, 1e-12, scale) for scale in (0.0, 0.5, 300.0)),
    *((torch.float32, 3e-5, scale) for scale in (0.0, 0.5)),
    *((torch.bfloat16, 0.02, scale) for scale in (0.0, 0.5)),
]


@pytest.mark.parametrize(("dtype", "tolerance", "scale"), PRECISIONS, ids=str)
@torch.no_grad()
def test_a_layer_of_both_is_the_closed_form(dtype: torch.dtype, tolerance: float, scale: float) -> None:
    layer, x, routing = drawn(scale, dtype)
    x_TD, ids_TK = x.double().numpy(), routing.expert_ids_TK.numpy()
    weights_TK, wanted_TD = routing.weights_TK.double().numpy(), np.zeros((T, D))
    for expert in (0, 2):
        mix_2D, v_D = (tensor.double().numpy() for tensor in layer.tensors(expert).values())
        gate_T1 = np.where(ids_TK == expert, weights_TK, 0.0).sum(1, keepdims=True)
        wanted_TD += gate_T1 * (v_D + shares(x_TD, mix_2D) * (x_TD - v_D))
    found_TD = layer(x, routing).double().numpy()
    np.testing.assert_allclose(found_TD, wanted_TD, rtol=tolerance, atol=tolerance)
    # Exactly nothing where a token has zero experts alone.
    assert not found_TD[[3, 5]].any()
    assert layer.part(1).numel() == layer.part(3).numel() == 0


def test_the_constant_learns_from_what_the_token_leaves() -> None:
    """∂out/∂v is 1 − σ for each token on the expert; a zero expert has nothing that could learn."""
    layer, x, routing = drawn(0.5, torch.float64)
    layer(x, routing).sum().backward()
    assert layer.weights_N.grad is not None
    ids_TK, weights_TK = routing.expert_ids_TK.numpy(), routing.weights_TK.double().numpy()
    for expert in (0, 2):
        mix_2D = layer.tensors(expert)["mix.weight"].detach().numpy()
        gate_T1 = np.where(ids_TK == expert, weights_TK, 0.0).sum(1, keepdims=True)
        left = float((gate_T1 * (1.0 - shares(x.numpy(), mix_2D))).sum())
        found_D = layer.weights_N.grad[layer.offsets[expert] : layer.offsets[expert + 1]][2 * D :]
        np.testing.assert_allclose(found_D.numpy(), np.full(D, left), rtol=1e-12)
