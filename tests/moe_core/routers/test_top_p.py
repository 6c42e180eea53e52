"""Dynamic k against a slow loop over sorted probabilities."""

from __future__ import annotations

import pytest
import torch

from moe_core.spec.gate import TopP
from tests.moe_core.routers.gate_cases import ask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_it_takes_the_fewest_experts_that_reach_p(p: float, top_k: int) -> None:
    torch.manual_seed(2)
    logits = 2 * torch.randn(40, 6)
    found = ask(TopP(p=p), logits, top_k)
    for row, probs in enumerate(torch.softmax(logits.double(), -1)):
        taken, total = [], 0.0
        for expert in probs.argsort(descending=True).tolist():
            if len(taken) < top_k and total < p - 1e-7:
                taken.append(expert)
                total += float(probs[expert])
        assert found.expert_ids_TK[row].tolist() == taken + [-1] * (top_k - len(taken))
        weights = probs[taken] / total
        torch.testing.assert_close(
            found.weights_TK[row, : len(taken)].double(), weights, rtol=1e-5, atol=1e-7
        )
    assert (found.weights_TK[~found.chosen_TK] == 0).all()


def test_a_hesitant_token_gets_more_experts_than_a_certain_one() -> None:
    found = ask(TopP(p=0.6), torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), 4)
    assert found.expert_ids_TK.tolist() == [[0, -1, -1, -1], [0, 1, 2, -1]]


def test_one_of_two_equal_experts_reaches_just_half() -> None:
    """The first of them has p exactly, so that the second is not needed."""
    found = ask(TopP(p=0.5), torch.zeros(3, 2), 2)
    assert found.expert_ids_TK.tolist() == [[0, -1]] * 3
    assert found.weights_TK.tolist() == [[1.0, 0.0]] * 3


def test_without_renormalising_the_weights_are_the_probabilities() -> None:
    found = ask(TopP(p=0.6), torch.zeros(1, 4), 4, norm_topk_prob=False)
    assert found.weights_TK.tolist() == [[0.25, 0.25, 0.25, 0.0]]


def test_a_nan_stays_in_its_own_token() -> None:
    found = ask(TopP(), torch.tensor([[float("nan"), 0.0], [5.0, 0.0]]), 2)
    assert found.weights_TK[0].isnan().all()
    assert found.expert_ids_TK[1].tolist() == [0, -1]
