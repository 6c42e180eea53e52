"""Whom an expert must beat where a bias is added to the softmax: found among few, as if all had been gone through."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from moe_core.routers import rivals as rivals_module
from moe_core.routers import to_beat as module
from moe_core.routers.noisy_topk import chance_of_choice
from moe_core.routers.rivals_of_many import rivals_of_many
from moe_core.routers.shares import Shares
from moe_core.routers.to_beat import biased_logit_to_beat

NEG_INF = float("-inf")


def one_by_one(noisy_TE: Tensor, rest_TE: Tensor, bias_E: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """What each expert must beat, found for one expert after the other among all others."""
    rivals, needed = [], []
    for expert in range(noisy_TE.shape[1]):
        share_TE = (noisy_TE - rest_TE[:, expert, None]).exp()
        needed_TE = (share_TE + bias_E - bias_E[expert]) / (1.0 + share_TE)
        needed_TE = needed_TE.masked_fill(noisy_TE == NEG_INF, NEG_INF)
        needed_TE[:, expert] = NEG_INF
        best_TK = needed_TE.topk(top_k, dim=-1)
        rivals.append(best_TK.indices[:, -1])
        needed.append(best_TK.values[:, -1])
    return torch.stack(rivals, dim=-1), torch.stack(needed, dim=-1) == NEG_INF


def of_shares(
    shares: Shares, weights_tE: Tensor, rest_tE: Tensor, bias_E: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    return one_by_one(shares.logits_tE, shares.log_rest_tE(), bias_E, top_k)


def written_out(noisy_TE: Tensor, bias_E: Tensor, top_k: int) -> Tensor:
    """The same logit by its definition, for autograd: the logsumexp of the others, and the rival's share of it."""
    num_experts = noisy_TE.shape[1]
    itself_EE = torch.eye(num_experts, dtype=torch.bool)
    rest_TE = noisy_TE[:, None].masked_fill(itself_EE, NEG_INF).logsumexp(-1)
    rival_TE, _ = one_by_one(noisy_TE.detach(), rest_TE.detach(), bias_E, top_k)
    behind_TE = bias_E[rival_TE] - bias_E
    return (
        rest_TE + ((noisy_TE.gather(-1, rival_TE) - rest_TE).exp() + behind_TE).log() - (1 - behind_TE).log()
    )


def drawn(num_tokens: int, num_experts: int, strength: float, scale: float = 1.4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_experts)
    noisy_TE = scale * torch.randn(num_tokens, num_experts, generator=generator, dtype=torch.float64)
    return noisy_TE, strength * torch.randn(num_experts, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("scale", "strength"),
    # Without any bias shares that underflow tie, and it is left to chance which of them is the k-th.
    [
        *product([1.0, 4.0, 30.0], [0.0, 1e-3, 0.01, 0.1, 0.8, 3.0]),
        (1000.0, 0.1),
        (1000.0, 0.8),
        (1000.0, 3.0),
    ],
)
@pytest.mark.parametrize(("num_experts", "top_k"), [(3, 1), (5, 2), (6, 5), (64, 8), (64, 1)])
def test_few_contenders_give_the_chances_that_all_experts_give(
    num_experts: int, top_k: int, scale: float, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(num_experts)
    clean, noise, open_to = torch.randn(3, 300, num_experts, generator=generator)
    spread = torch.rand(300, num_experts, generator=generator) + 0.2
    is_masked = (open_to < -0.8) & (torch.arange(300)[:, None] >= 150)
    is_masked[:, 0] = False
    clean = (clean * scale).masked_fill(is_masked, NEG_INF)
    noisy = clean + noise * spread
    bias_E = strength * torch.randn(num_experts, generator=generator)
    found = chance_of_choice(clean, noisy, spread, top_k, bias_E)
    monkeypatch.setattr(module, "rivals", of_shares)
    expected = chance_of_choice(clean, noisy, spread, top_k, bias_E)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [1e-3, 0.01, 0.1])
def test_logits_to_beat_and_their_gradient_are_those_of_the_definition(strength: float) -> None:
    noisy_TE, bias_E = drawn(96, 64, strength)
    weight_TE = torch.randn(96, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for find in (biased_logit_to_beat, written_out):
        at_TE = noisy_TE.clone().requires_grad_()
        logit_TE = find(at_TE, bias_E, 8)
        is_finite_TE = logit_TE.detach().isfinite()
        (grad_TE,) = torch.autograd.grad((logit_TE * weight_TE)[is_finite_TE].sum(), at_TE)
        results.append((logit_TE.detach()[is_finite_TE], grad_TE))
    is_finite_TE = written_out(noisy_TE, bias_E, 8).isfinite()
    assert is_finite_TE.double().mean() > 0.5
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_gradient_is_that_of_small_steps(top_k: int) -> None:
    noisy_TE, bias_E = drawn(12, 9, 0.02)
    is_sure_TE = ~biased_logit_to_beat(noisy_TE, bias_E, top_k).isfinite()

    def finite(at_TE: Tensor) -> Tensor:
        return biased_logit_to_beat(at_TE, bias_E, top_k).masked_fill(is_sure_TE, 0.0)

    assert torch.autograd.gradcheck(finite, noisy_TE.requires_grad_())


def test_one_expert_with_almost_all_of_a_token_leaves_a_gradient_to_the_others() -> None:
    """Its share is 1 to the last digit; what is to be beaten is told by the others' among themselves."""
    noisy_TE = torch.tensor([[60.0, 1.0, 0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    bias_E = torch.tensor([0.0, 0.0, 0.1, 0.3], dtype=torch.float64)
    ours = biased_logit_to_beat(noisy_TE, bias_E, 1)[0, 0]
    theirs = written_out(noisy_TE, bias_E, 1)[0, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(one, noisy_TE, retain_graph=True)[0] for one in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    assert ours[0, 0] == 0.0


def test_experts_without_a_logit_or_a_number_stay_in_their_token() -> None:
    noisy_TE, bias_E = drawn(4, 8, 0.05)
    plain_TE = biased_logit_to_beat(noisy_TE, bias_E, 2)
    noisy_TE = noisy_TE.clone()
    noisy_TE[0], noisy_TE[1, 3], noisy_TE[2, 1:] = NEG_INF, float("nan"), NEG_INF
    noisy_TE.requires_grad_()
    found_TE = biased_logit_to_beat(noisy_TE, bias_E, 2)
    assert torch.equal(found_TE[3], plain_TE[3])
    assert found_TE[2, 0] == NEG_INF
    found_TE[3].sum().backward()
    assert noisy_TE.grad is not None
    assert noisy_TE.grad[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("scale", [1.4, 3.0, 6.0])
def test_no_contender_is_overlooked_that_rises_past_a_flat_one(scale: float) -> None:
    """An expert that is in may leave so much to the others that the first one that is out is no longer the next."""
    noisy_TE, bias_E = drawn(1500, 64, 0.03, scale)
    rest_TE = Shares.of(noisy_TE).log_rest_tE()

    def needed(find: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        """The share with which each expert comes in: 0 where it is in in any case, 1 where never."""
        rival_TE, _ = find(noisy_TE, rest_TE, bias_E, 4)
        share_TE = (noisy_TE.gather(-1, rival_TE) - rest_TE).exp()
        return ((share_TE + bias_E[rival_TE] - bias_E) / (1.0 + share_TE)).clamp(0.0, 1.0)

    torch.testing.assert_close(needed(rivals_of_many), needed(one_by_one), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_tokens_whose_lines_change_too_often_are_gone_through_one_by_one(
    strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy_TE, bias_E = drawn(200, 64, strength)
    wanted_TE = biased_logit_to_beat(noisy_TE, bias_E, 4)
    gone_through: list[int] = []

    def counted(noisy_tE: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        gone_through.append(len(noisy_tE))
        return rivals_of_many(noisy_tE, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(rivals_module, "rivals_of_many", counted)
    monkeypatch.setattr(rivals_module, "MAX_CHANGES", 1)
    torch.testing.assert_close(biased_logit_to_beat(noisy_TE, bias_E, 4), wanted_TE, rtol=1e-12, atol=1e-12)
    assert sum(gone_through) > 10


def seconds(act: Callable[..., object], *given: object) -> float:
    begun = time.process_time()
    act(*given)
    return time.process_time() - begun


def test_many_experts_are_not_gone_through_one_by_one() -> None:
    noisy_TE, bias_E = drawn(512, 256, 0.01)
    given = (noisy_TE, Shares.of(noisy_TE).log_rest_tE(), bias_E, 8)
    rounds = [(seconds(rivals_of_many, *given), seconds(one_by_one, *given)) for _ in range(3)]
    assert 3 * min(few for few, _ in rounds) < min(each for _, each in rounds)


def test_a_bias_does_not_make_the_load_of_many_experts_many_times_as_dear() -> None:
    """Two to five times, by how busy the machine is; where every contender is compared for every expert, thirteen."""
    noisy_TE, bias_E = (one.float() for one in drawn(2048, 256, 0.01))
    clean_TE, spread_TE = 0.9 * noisy_TE, torch.full_like(noisy_TE, 0.7)

    def load(bias_E: Tensor | None) -> None:
        noisy = noisy_TE.clone().requires_grad_()
        chance_of_choice(clean_TE, noisy, spread_TE, 8, bias_E).sum(0).square().sum().backward()

    rounds = [(seconds(load, bias_E), seconds(load, None)) for _ in range(5)]
    assert min(biased for biased, _ in rounds) < 8 * min(plain for _, plain in rounds)
