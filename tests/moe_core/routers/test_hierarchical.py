"""Domain, group, expert: the flat softmax where it should be, and three gates that learn."""

from __future__ import annotations

import pytest
import torch

from moe_core.routers import GateCall, decide, route
from moe_core.routers.hierarchical import joint_logits
from moe_core.spec.gate import Hierarchical
from tests.moe_core.routers.gate_cases import moe_of, tensors_of

NEG_INF = float("-inf")


def test_it_equals_the_flat_softmax_where_coarse_logits_sum_up_fine_ones() -> None:
    torch.manual_seed(0)
    flat_TE = torch.randn(20, 24, dtype=torch.float64)
    group_TG = flat_TE.unflatten(-1, (6, 4)).logsumexp(-1)
    domain_TN = group_TG.unflatten(-1, (2, 3)).logsumexp(-1)
    joint_TE = joint_logits(domain_TN, group_TG, flat_TE)
    torch.testing.assert_close(joint_TE, torch.log_softmax(flat_TE, -1))
    # Moved by any amount inside a group, nothing changes: only what the levels above say moves a whole group.
    moved_TE = (flat_TE.unflatten(-1, (6, 4)) + torch.randn(20, 6, 1, dtype=torch.float64)).flatten(-2)
    torch.testing.assert_close(joint_logits(domain_TN, group_TG, moved_TE), joint_TE)


def test_with_one_domain_and_one_group_the_gate_is_softmax_top_k() -> None:
    torch.manual_seed(1)
    moe = moe_of(Hierarchical(), 6, 2)
    tensors, hidden_TD = tensors_of(moe, 8), torch.randn(30, 8)
    found, flat = decide(moe, tensors, GateCall(hidden_TD, 2)), route(hidden_TD, tensors["weight"], top_k=2)
    assert torch.equal(found.expert_ids_TK, flat.expert_ids_TK)
    torch.testing.assert_close(found.weights_TK, flat.weights_TK)


def test_the_product_equals_a_loop_over_the_tree() -> None:
    torch.manual_seed(2)
    domain, group, expert = torch.randn(1, 2), torch.randn(1, 4), torch.randn(1, 8)
    joint = joint_logits(domain, group, expert).exp()[0]
    p_domain = torch.softmax(domain[0], -1)
    for e in range(8):
        g, d = e // 2, e // 4
        p_group = torch.softmax(group[0, 2 * d : 2 * d + 2], -1)[g % 2]
        p_expert = torch.softmax(expert[0, 2 * g : 2 * g + 2], -1)[e % 2]
        assert float(joint[e]) == pytest.approx(float(p_domain[d] * p_group * p_expert), rel=1e-5)


def test_all_three_gates_learn_and_shares_are_told() -> None:
    moe = moe_of(Hierarchical(num_domains=2, groups_per_domain=2), 8, 2, norm_topk_prob=False)
    tensors = tensors_of(moe, 5)
    found = decide(moe, tensors, GateCall(torch.randn(16, 5), 2, norm_topk_prob=False))
    found.weights_TK.sum().backward()
    for name in ("weight", "group_weight", "domain_weight"):
        grad = tensors[name].grad
        assert grad is not None
        assert grad.abs().sum() > 0
    torch.testing.assert_close(found.statistics["domain_share_N"].sum(), torch.tensor(1.0))
    torch.testing.assert_close(found.statistics["group_share_G"].sum(), torch.tensor(1.0))


def test_shares_are_told_of_tokens_that_are_real_and_finite() -> None:
    moe = moe_of(Hierarchical(num_domains=2, groups_per_domain=2), 8, 2)
    tensors, x_TD = tensors_of(moe, 6), torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    spoilt_TD = x_TD.clone()
    spoilt_TD[4], spoilt_TD[6:] = float("nan"), 50.0
    alone = decide(moe, tensors, GateCall(x_TD[[0, 1, 2, 3, 5]], 2)).statistics
    found = decide(moe, tensors, GateCall(spoilt_TD, 2, real_T=torch.arange(9) < 6)).statistics
    for name in ("group_share_G", "domain_share_N"):
        torch.testing.assert_close(found[name], alone[name])
        assert float(found[name].sum()) == pytest.approx(1.0)
    nothing = decide(moe, tensors, GateCall(x_TD, 2, real_T=torch.zeros(9, dtype=torch.bool))).statistics
    assert nothing["domain_share_N"].tolist() == [0.0, 0.0]


def test_it_can_learn_domains_that_a_coarse_gate_sees() -> None:
    """Two domains of two experts: trained on labels, each token ends in its domain and at its own expert."""
    generator = torch.Generator().manual_seed(3)
    hidden_TD = torch.randn(200, 6, generator=generator)
    target_T = 2 * (hidden_TD[:, 0] > 0).long() + (hidden_TD[:, 1] > 0).long()
    moe = moe_of(Hierarchical(num_domains=2), 4, 1)
    tensors = tensors_of(moe, 6, std=0.01)
    adam = torch.optim.Adam(list(tensors.values()), lr=0.1)
    for _ in range(60):
        adam.zero_grad()
        found = decide(moe, tensors, GateCall(hidden_TD, 1))
        torch.nn.functional.nll_loss(found.logits_TE, target_T).backward()
        adam.step()
    assert float((found.expert_ids_TK[:, 0] == target_T).float().mean()) > 0.95
    assert tensors["domain_weight"][:, 0].diff().abs().item() > 1.0


def test_a_mask_of_a_whole_domain_holds() -> None:
    moe = moe_of(Hierarchical(num_domains=2), 4, 2)
    bias = torch.tensor([[NEG_INF, NEG_INF, 0.0, 0.0]]).expand(10, -1)
    found = decide(moe, tensors_of(moe, 5), GateCall(torch.randn(10, 5), 2, bias_TE=bias))
    assert (found.expert_ids_TK >= 2).all()
    torch.testing.assert_close(found.weights_TK.sum(-1), torch.ones(10))
