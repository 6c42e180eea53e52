"""Sparsemax against the projection found by bisection in float64, and its gradient against differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.routers.sparsemax import sparsemax
from moe_core.spec.gate import Sparsemax
from tests.moe_core.routers.gate_cases import ask

NEG_INF = float("-inf")


def by_bisection(z: list[float]) -> Tensor:
    """max(z - t, 0) with t such that the sum is one."""
    z_E = torch.tensor(z, dtype=torch.float64)
    low, high = float(z_E.max()) - 1.0, float(z_E.max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float((z_E - middle).clamp(min=0).sum()) > 1.0 else (low, middle)
    return (z_E - high).clamp(min=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_it_is_the_projection_on_the_simplex(z: list[float]) -> None:
    found = sparsemax(torch.tensor([z], dtype=torch.float64))[0]
    torch.testing.assert_close(found, by_bisection(z), rtol=0, atol=1e-9)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)


def test_experts_out_of_reach_get_exactly_zero() -> None:
    assert sparsemax(torch.tensor([[1.0, 0.5, -0.5]])).tolist() == [[0.75, 0.25, 0.0]]


def test_the_gradient_is_that_of_differences() -> None:
    torch.manual_seed(0)
    logits = (2 * torch.randn(6, 7, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(sparsemax, (logits,))


def test_the_gradient_is_centred_on_the_support() -> None:
    logits = torch.tensor([[1.0, 0.5, -0.5]], requires_grad=True)
    sparsemax(logits).backward(torch.tensor([[3.0, 1.0, 9.0]]))
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_a_token_has_as_many_experts_as_have_a_share() -> None:
    found = ask(Sparsemax(), torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.5, -0.5], [0.1, 0.0, 0.1]]), 3)
    assert found.expert_ids_TK.tolist() == [[0, -1, -1], [0, 1, -1], [0, 2, 1]]
    torch.testing.assert_close(found.weights_TK.sum(-1), torch.ones(3))
    assert ((found.weights_TK > 0) == found.chosen_TK).all()


@pytest.mark.parametrize("norm", [True, False])
def test_no_token_has_more_experts_than_places(norm: bool) -> None:
    torch.manual_seed(1)
    logits = 0.3 * torch.randn(50, 8)
    found = ask(Sparsemax(), logits, 2, norm_topk_prob=norm)
    full = sparsemax(logits.double())
    assert (full > 0).sum(-1).min() >= 2
    assert torch.equal(found.expert_ids_TK, full.argsort(-1, descending=True)[:, :2])
    if norm:
        torch.testing.assert_close(found.weights_TK.double(), sparsemax(logits.double().topk(2).values))
    else:
        torch.testing.assert_close(found.weights_TK.double(), full.topk(2).values)


def test_priors_mask_and_push() -> None:
    logits, bias = torch.tensor([[2.0, 1.9, 1.8]]), torch.tensor([[NEG_INF, 0.0, 5.0]])
    found = ask(Sparsemax(), logits, 2, bias_TE=bias)
    assert found.expert_ids_TK.tolist() == [[2, -1]]
    assert found.probs_TE.tolist() == [[0.0, 0.0, 1.0]]


def test_the_balancing_bias_changes_who_may_have_a_place() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.8]])
    found = ask(Sparsemax(), logits, 1, selection_bias_E=torch.tensor([0.0, 0.0, 1.0]))
    assert found.expert_ids_TK.tolist() == [[2]]


def test_ties_nan_and_cold() -> None:
    assert ask(Sparsemax(), torch.zeros(1, 3), 2).expert_ids_TK.tolist() == [[0, 1]]
    found = ask(Sparsemax(), torch.tensor([[float("nan"), 0.0], [0.0, 9.0]]), 2)
    assert found.weights_TK[0].isnan().all()
    assert found.weights_TK[1].tolist() == [1.0, 0.0]
    cold = ask(Sparsemax(), torch.tensor([[0.1, 0.1, 0.0]]), 2, temperature=0.0)
    assert (cold.expert_ids_TK.tolist(), cold.weights_TK.tolist()) == ([[0, -1]], [[1.0, 0.0]])
