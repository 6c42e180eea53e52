"""One kernel for a gate's decision against the gates themselves: ties, NaN, masks, groups, every score function."""

from __future__ import annotations

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.kernels.triton.topk import takes, topk
from moe_core.routers import gates
from moe_core.routers.call import GateCall
from moe_core.routers.routing import Routing
from moe_core.spec.gate import SigmoidGroups, SoftmaxTopk

TOKENS = 9


def raw_logits(num_experts: int) -> torch.Tensor:
    """Random, with ties, a NaN, all equal, and both zeros."""
    raw = torch.randn(TOKENS, num_experts, generator=torch.Generator().manual_seed(3))
    raw[1, 3] = raw[1, 5] = raw[1, 0]
    raw[2, 4] = float("nan")
    raw[3] = 0.0
    raw[4] = -0.0
    raw[4, 2] = 0.0
    return raw


def prior(num_experts: int, top_k: int) -> torch.Tensor:
    """A mask that leaves top_k experts, a push, and a masked first group."""
    table = torch.zeros(TOKENS, num_experts)
    table[5, : num_experts - top_k] = float("-inf")
    table[6, -1] = 3.0
    table[7, : num_experts // 8] = float("-inf")
    return table


def by_the_gate(gate, raw: torch.Tensor, call: GateCall) -> Routing:
    """The gate with an identity for its map, so that its logits are `raw`."""
    identity = {"weight": torch.eye(raw.shape[1])}
    # A product with an identity would spread the NaN and lose -0: the map is left out.
    return gates.GATES[gate.kind](gate, identity, call)


def assert_same(found, wanted: Routing) -> None:
    ids, weights, logits, shares = (x.cpu() for x in found)
    assert torch.equal(ids, wanted.expert_ids_TK)
    torch.testing.assert_close(weights, wanted.weights_TK, rtol=2e-6, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(logits, wanted.logits_TE, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(shares, wanted.probs_TE, rtol=2e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (60, 4), (5, 5), (1, 1)])
@pytest.mark.parametrize("renormalised", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_it_decides_as_the_softmax_gate(
    device, monkeypatch, num_experts, top_k, renormalised, biased
) -> None:
    raw = raw_logits(max(num_experts, 6))[:, :num_experts].contiguous()
    table = prior(num_experts, top_k)
    bias = torch.linspace(-0.2, 0.2, num_experts) if biased else None
    monkeypatch.setattr("moe_core.routers.logits.raw_logits", lambda weights, call: raw)
    call = GateCall(raw, top_k, renormalised, 0.7, table, selection_bias_E=bias)
    wanted = by_the_gate(SoftmaxTopk(), raw, call)
    found = topk(
        raw.to(device), top_k=top_k, normalised=renormalised, by_logits=True, temperature=0.7,
        prior_TE=table.to(device), selection_bias_E=None if bias is None else bias.to(device),
    )  # fmt: skip
    assert_same(found, wanted)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "sqrtsoftplus"])
@pytest.mark.parametrize("level", [-100.0, -40.0, -19.0, -16.0, -12.0, -5.0, 21.0])
def test_logits_that_all_lie_low_are_told_apart(device, monkeypatch, scores, level) -> None:
    raw = level + torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr("moe_core.routers.logits.raw_logits", lambda weights, call: raw)
    call = GateCall(raw, 3, True, 1.0)
    wanted = by_the_gate(SigmoidGroups(scores=scores), raw, call)
    found = topk(raw.to(device), top_k=3, normalised=True, by_logits=False, scores=scores)
    ids, weights, _, _ = (x.cpu() for x in found)
    assert torch.equal(ids, wanted.expert_ids_TK)
    # Below 1e-20 a sum of scores is no longer what they are divided by.
    torch.testing.assert_close(weights, wanted.weights_TK, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "sqrtsoftplus"])
@pytest.mark.parametrize(
    ("groups", "chosen", "worth"),
    [(1, 1, "two_best"), (8, 3, "two_best"), (8, 4, "best"), (4, 1, "two_best")],
)
def test_it_decides_as_the_gate_of_groups(device, monkeypatch, scores, groups, chosen, worth) -> None:
    num_experts, top_k = 64, 8
    raw, table = raw_logits(num_experts), prior(num_experts, top_k)
    bias = torch.linspace(-0.2, 0.2, num_experts)
    monkeypatch.setattr("moe_core.routers.logits.raw_logits", lambda weights, call: raw)
    gate = SigmoidGroups(
        scores=scores, num_groups=groups, topk_group=chosen, group_score=worth, routed_scaling_factor=2.5
    )
    wanted = by_the_gate(gate, raw, GateCall(raw, top_k, True, 1.0, table, selection_bias_E=bias))
    found = topk(
        raw.to(device), top_k=top_k, scores=scores, factor=2.5, num_groups=groups, topk_group=chosen,
        two_best=worth == "two_best", prior_TE=table.to(device), selection_bias_E=bias.to(device),
    )  # fmt: skip
    assert_same(found, wanted)


def test_masked_experts_are_worth_nothing_to_their_group_even_where_all_scores_are_negative(
    device, monkeypatch
) -> None:
    raw = torch.randn(33, 64, generator=torch.Generator().manual_seed(3))
    # Every second expert is masked, as hidden twins are; groups then differ by what is left of them.
    table = torch.zeros(33, 64)
    table[:, 1::2] = float("-inf")
    bias = torch.linspace(-2.0, -1.5, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(4))]
    monkeypatch.setattr("moe_core.routers.logits.raw_logits", lambda weights, call: raw)
    gate = SigmoidGroups(num_groups=8, topk_group=3)
    wanted = by_the_gate(gate, raw, GateCall(raw, 8, True, 1.0, table, selection_bias_E=bias))
    found = topk(
        raw.to(device), top_k=8, scores="sigmoid", num_groups=8, topk_group=3,
        prior_TE=table.to(device), selection_bias_E=bias.to(device),
    )  # fmt: skip
    assert_same(found, wanted)


def test_no_token_is_no_decision(device) -> None:
    ids, weights, logits, shares = topk(torch.zeros(0, 8, device=device), top_k=2)
    assert ids.shape == weights.shape == (0, 2)
    assert logits.shape == shares.shape == (0, 8)


def test_it_says_which_sizes_it_has(device) -> None:
    assert takes(1024, 64)
    assert not takes(2048, 2)
    assert not takes(60, 2, num_groups=4)
    with pytest.raises(SpecError, match="at most 1024 experts"):
        topk(torch.zeros(2, 60, device=device), top_k=2, num_groups=4, topk_group=2)
    with pytest.raises(SpecError, match="float32"):
        topk(torch.zeros(2, 8, dtype=torch.float16, device=device), top_k=2)
    with pytest.raises(SpecError, match="temperature"):
        topk(torch.zeros(2, 8, device=device), top_k=2, temperature=0.0)
    with pytest.raises(SpecError, match="prior"):
        topk(torch.zeros(2, 8, device=device), top_k=2, prior_TE=torch.zeros(2, 7, device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "gate", [SoftmaxTopk(), SigmoidGroups(num_groups=8, topk_group=4)], ids=lambda g: g.kind
)
def test_a_gate_on_a_gpu_decides_as_on_the_cpu(device, gate) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(200, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = gates.GATES[gate.kind](gate, {"weight": weight}, GateCall(hidden, 8))
        found = gates.GATES[gate.kind](gate, {"weight": weight.to(device)}, GateCall(hidden.to(device), 8))
    assert (found.expert_ids_TK.cpu() == wanted.expert_ids_TK).float().mean() > 0.999
    torch.testing.assert_close(found.weights_TK.cpu(), wanted.weights_TK, rtol=1e-3, atol=1e-4)
