"""The gate of DeepSeek-V3 against transformers' own, and against a slow truth where that one is undefined."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import DeepseekV3Config, GptOssConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from moe_core.routers import GateCall, decide
from moe_core.spec.gate import SigmoidGroups, SoftmaxTopk
from tests.moe_core.routers.gate_cases import ask, moe_of

NEG_INF = float("-inf")


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("num_groups", "topk_group", "top_k"), [(1, 1, 2), (4, 2, 4), (8, 3, 6), (4, 4, 16)])
def test_it_equals_the_router_of_deepseek_v3(
    num_groups: int, topk_group: int, top_k: int, norm: bool
) -> None:
    torch.manual_seed(num_groups + top_k)
    config = DeepseekV3Config(
        hidden_size=24, n_routed_experts=16, num_experts_per_tok=top_k, n_group=num_groups, topk_group=topk_group,
        norm_topk_prob=norm, routed_scaling_factor=2.5,
    )  # fmt: skip
    theirs = DeepseekV3TopkRouter(config)
    theirs.weight.data.normal_()
    theirs.e_score_correction_bias.normal_(0.0, 0.3)
    hidden_TD = torch.randn(200, 24)
    _, weights_TK, ids_TK = theirs(hidden_TD)
    gate = SigmoidGroups(num_groups=num_groups, topk_group=topk_group, routed_scaling_factor=2.5)
    tensors = {"weight": theirs.weight, "selection_bias": theirs.e_score_correction_bias}
    found = decide(moe_of(gate, 16, top_k), tensors, GateCall(hidden_TD, top_k, norm))
    order = ids_TK.argsort(-1)
    ours = found.expert_ids_TK.argsort(-1)
    assert torch.equal(found.expert_ids_TK.gather(1, ours), ids_TK.gather(1, order))
    torch.testing.assert_close(
        found.weights_TK.gather(1, ours), weights_TK.gather(1, order), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("order", ["before", "after"])
def test_softmax_after_top_k_equals_the_router_of_gpt_oss(order: str) -> None:
    torch.manual_seed(1)
    theirs = GptOssTopKRouter(GptOssConfig(hidden_size=24, num_local_experts=8, num_experts_per_tok=3))
    theirs.weight.data.normal_()
    theirs.bias.data.normal_()
    hidden_TD = torch.randn(100, 24)
    _, weights_TK, ids_TK = theirs(hidden_TD)
    moe = moe_of(SoftmaxTopk(order=order, logit_bias=True), 8, 3)
    found = decide(moe, {"weight": theirs.weight, "bias": theirs.bias}, GateCall(hidden_TD, 3))
    assert torch.equal(found.expert_ids_TK, ids_TK)
    torch.testing.assert_close(found.weights_TK, weights_TK, rtol=1e-6, atol=1e-7)
    assert found.weights_TK.requires_grad


def test_softmax_after_top_k_sums_to_one_whatever_the_norm_says() -> None:
    found = ask(SoftmaxTopk(order="after"), torch.randn(5, 4), 2, norm_topk_prob=False)
    torch.testing.assert_close(found.weights_TK.sum(-1), torch.ones(5))


def test_ties_go_to_the_lower_group_and_the_lower_expert() -> None:
    gate = SigmoidGroups(num_groups=4, topk_group=2, selection_bias=False)
    found = ask(gate, torch.zeros(3, 8), 3)
    assert found.expert_ids_TK.tolist() == [[0, 1, 2]] * 3
    torch.testing.assert_close(found.weights_TK, torch.full((3, 3), 1 / 3))


def test_the_bias_picks_and_does_not_weigh() -> None:
    gate = SigmoidGroups()
    pushed = {"selection_bias": torch.tensor([0.0, 0.0, 5.0, 0.0])}
    found = ask(gate, torch.tensor([[3.0, 2.0, -2.0, 1.0]]), 2, norm_topk_prob=False, tensors=pushed)
    assert found.expert_ids_TK.tolist() == [[2, 0]]
    sigmoid = [1 / (1 + math.exp(2.0)), 1 / (1 + math.exp(-3.0))]
    assert found.weights_TK[0].tolist() == pytest.approx(sigmoid, rel=1e-6)


def test_the_bias_of_the_call_adds_to_the_stored_one() -> None:
    stored = {"selection_bias": torch.tensor([0.0, 0.6, 0.0, 0.0])}
    call = {"selection_bias_E": torch.tensor([0.0, 0.6, 0.0, 0.0])}
    alone = ask(SigmoidGroups(), torch.tensor([[9.0, -9.0, 0.0, 0.0]]), 1, tensors=stored)
    both = ask(SigmoidGroups(), torch.tensor([[9.0, -9.0, 0.0, 0.0]]), 1, tensors=stored, **call)
    assert (alone.expert_ids_TK.item(), both.expert_ids_TK.item()) == (0, 1)


def test_the_best_groups_are_chosen_by_their_two_best_or_by_their_best() -> None:
    logits = torch.tensor([[4.0, -4.0, 1.0, 1.0]])
    two = ask(SigmoidGroups(num_groups=2), logits, 1)
    one = ask(SigmoidGroups(num_groups=2, group_score="best"), logits, 1)
    assert (two.expert_ids_TK.item(), one.expert_ids_TK.item()) == (2, 0)


def test_a_masked_expert_is_never_chosen_even_when_its_group_would_be() -> None:
    logits = torch.tensor([[9.0, 8.0, 1.0, 1.0, 0.0, 0.0, 0.5, 0.0]])
    bias = torch.tensor([[NEG_INF, NEG_INF, 0.0, NEG_INF, NEG_INF, 0.0, 0.0, 0.0]])
    found = ask(SigmoidGroups(num_groups=4), logits, 2, bias_TE=bias)
    assert found.expert_ids_TK.tolist() == [[6, 7]]
    few = ask(SigmoidGroups(num_groups=4, group_score="best"), logits, 2, bias_TE=bias)
    # The best group has one expert that is left: the best of the other groups fills up.
    assert few.expert_ids_TK.tolist() == [[2, 6]]
    assert few.probs_TE[0, 0] == 0.0


def test_a_masked_expert_counts_in_its_group_as_if_it_were_not_there() -> None:
    """With correction biases below every score: what is masked must not be worth more than what is not."""
    torch.manual_seed(7)
    logits_TE, bias_E = torch.randn(200, 8), torch.rand(8) - 2.0
    whole = ask(SigmoidGroups(num_groups=4), logits_TE, 2, tensors={"selection_bias": bias_E})
    # Every expert has a neighbour in its group that is masked.
    order = torch.arange(8).repeat_interleave(2)
    mask_E = torch.tensor([0.0, NEG_INF]).repeat(8)
    found = ask(
        SigmoidGroups(num_groups=4), logits_TE[:, order], 2,
        tensors={"selection_bias": bias_E[order]}, bias_TE=mask_E.expand(200, -1),
    )  # fmt: skip
    assert torch.equal(order[found.expert_ids_TK], whole.expert_ids_TK)
    torch.testing.assert_close(found.weights_TK, whole.weights_TK, rtol=0, atol=0)
    assert len(whole.expert_ids_TK[:, 0].unique()) > 4


@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "sqrtsoftplus"])
def test_shares_sum_to_one_and_gradients_reach_the_gate(scores: str) -> None:
    weight_ED = torch.randn(8, 5, requires_grad=True)
    moe = moe_of(SigmoidGroups(scores=scores, selection_bias=False), 8, 2)
    found = decide(moe, {"weight": weight_ED}, GateCall(torch.randn(6, 5), 2))
    torch.testing.assert_close(found.probs_TE.sum(-1), torch.ones(6))
    found.weights_TK[:, 0].sum().backward()
    assert weight_ED.grad is not None
    assert weight_ED.grad.abs().sum() > 0


def test_a_nan_stays_in_its_own_token_and_no_tokens_give_no_rows() -> None:
    gate = SigmoidGroups(num_groups=2, topk_group=1)
    logits = torch.tensor([[1.0, 2.0, 0.0, 0.0], [float("nan"), 0.0, 0.0, 0.0]])
    # The identity map spreads a NaN over the token's logits.
    found = ask(gate, logits, 2)
    assert found.expert_ids_TK[0].tolist() == [1, 0]
    assert found.weights_TK[0].isfinite().all()
    assert found.weights_TK[1].isnan().all()
    assert ask(gate, torch.empty(0, 4), 2).expert_ids_TK.shape == (0, 2)
    assert ask(SigmoidGroups(), torch.zeros(2, 1), 1).expert_ids_TK.tolist() == [[0], [0]]
