"""The scores that choose are those whose k best are the choice, so that margins are of them."""

from __future__ import annotations

import pytest
import torch

from moe_core.operations.metrics import margins
from moe_core.operations.routing_figures import RoutingFigures
from moe_core.routers import GateCall, decide
from moe_core.routers.choosing import best
from moe_core.routers.scores import choosing_scores
from moe_core.spec.gate import SigmoidGroups, SoftmaxTopk
from tests.moe_core.routers.every_gate import WIDTH, asked, mixture, moe_of, tensors_of

CHOOSING = ("softmax_topk", "sigmoid_groups", "sparsemax", "noisy_topk", "quantile", "base", "hierarchical")
BIAS_E = torch.linspace(-0.6, 0.6, 8)


@pytest.mark.parametrize("kind", CHOOSING)
def test_their_k_best_are_the_choice(kind: str) -> None:
    moe = mixture(kind, 8, 2)
    assert moe is not None
    x_TD = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))
    tensors = {n: t.detach() for n, t in tensors_of(moe, WIDTH).items()}
    found = asked(moe, tensors, x_TD, False, selection_bias_E=BIAS_E)
    ids_TK = best(choosing_scores(moe.gate, found), moe.top_k)
    assert torch.equal(torch.where(found.chosen_TK, ids_TK, -1), found.expert_ids_TK)


def test_where_a_mask_leaves_the_best_groups_too_few_the_others_fill_up_and_are_in_reach() -> None:
    gate = SigmoidGroups(num_groups=4, topk_group=1)
    moe = moe_of(gate, 8, 2)
    tensors = {n: t.detach() for n, t in tensors_of(moe, WIDTH).items()}
    bias_TE = torch.zeros(40, 8)
    bias_TE[:20, ::2] = float("-inf")
    x_TD = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))
    found = asked(moe, tensors, x_TD, False, bias_TE=bias_TE)
    assert found.chosen_TK.all()
    scores_TE = choosing_scores(gate, found)
    assert torch.equal(best(scores_TE, 2), found.expert_ids_TK)
    assert ((scores_TE > float("-inf")).sum(-1) == torch.tensor([4] * 20 + [2] * 20)).all()


def test_a_margin_is_of_the_score_with_its_bias_inside_the_groups() -> None:
    gate = SigmoidGroups(num_groups=2, topk_group=1, group_score="best")
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.9, 1.0, 0.5]])
    tensors = {"weight": torch.eye(6), "selection_bias": torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0, 0.0])}
    found = decide(moe_of(gate, 6, 2), tensors, GateCall(logits, 2))
    scores_TE = choosing_scores(gate, found)
    # Expert 1 leads by its bias; the second group, good as it is, is out of reach.
    sigmoid = torch.sigmoid(logits[0])
    assert float(margins(scores_TE, 2)) == pytest.approx(float(sigmoid[0] - sigmoid[2]))
    assert float(margins(scores_TE, 1)) == pytest.approx(float(sigmoid[1] + 0.5 - sigmoid[0]), rel=1e-5)
    assert float(margins(scores_TE, 3)) == float("inf")


def test_reports_have_the_margin_of_the_score() -> None:
    moe = moe_of(SoftmaxTopk(selection_bias=True), 3, 1)
    tensors = {"weight": torch.eye(3), "selection_bias": torch.tensor([0.0, 0.0, 0.9])}
    found = decide(moe, tensors, GateCall(torch.zeros(4, 3), 1))
    figures = RoutingFigures(moe, 0)
    figures.add(0, found, torch.ones(4, dtype=torch.bool), torch.arange(4), torch.full((4,), -1))
    assert figures.report()["layers"][0]["margin"] == pytest.approx(0.9)


def test_a_table_leaves_nothing_else_to_choose() -> None:
    moe = mixture("hash", 8, 2)
    assert moe is not None
    found = asked(moe, tensors_of(moe, WIDTH), torch.randn(5, WIDTH), False)
    assert margins(choosing_scores(moe.gate, found), 2).isinf().all()
