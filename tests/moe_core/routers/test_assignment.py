"""The balanced assignment against scipy's, and gates that are built on it: BASE, semantic BASE, clustered hashing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from moe_core.errors import SpecError
from moe_core.routers import GateCall, decide, load_of
from moe_core.routers.assignment import balanced_assignment
from moe_core.routers.centroids import centroids_of
from moe_core.routers.start import Words, start_gate
from moe_core.spec.gate import Base
from tests.moe_core.routers.gate_cases import ask, moe_of, tensors_of

NEG_INF = float("-inf")


def best_total(scores: np.ndarray) -> float:
    """The highest sum with loads of ⌊T/E⌋ or one more, each choice of who has one more tried."""
    num_tokens, num_experts = scores.shape
    floor, rest = divmod(num_tokens, num_experts)
    totals = []
    for lucky in itertools.combinations(range(num_experts), rest):
        places = [e for e in range(num_experts) for _ in range(floor + (e in lucky))]
        rows, columns = linear_sum_assignment(scores[:, places], maximize=True)
        totals.append(scores[rows, np.array(places, dtype=int)[columns]].sum())
    return max(totals)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31), st.booleans())
def test_it_reaches_the_optimum_of_scipy(num_tokens: int, num_experts: int, seed: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_tokens, num_experts)) + np.linspace(3, 0, num_experts)
    scores = np.round(scores) if coarse else scores  # many ties
    found = balanced_assignment(torch.from_numpy(scores)).numpy()
    load = np.bincount(found, minlength=num_experts)
    assert load.max() - load.min() <= 1
    assert scores[np.arange(num_tokens), found].sum() == pytest.approx(best_total(scores), abs=1e-9)


@pytest.mark.parametrize("alike", [False, True], ids=["all different", "few words"])
@pytest.mark.parametrize(("num_tokens", "num_experts"), [(512, 16), (1000, 8), (1027, 13), (768, 64)])
def test_thousands_of_tokens_reach_the_same_optimum(num_tokens: int, num_experts: int, alike: bool) -> None:
    """Where loads do not divide, the dummy tokens that fill up an expert cost nothing and no expert takes two of them."""
    rng = np.random.default_rng(num_tokens)
    scores = rng.normal(size=(num_tokens, num_experts)) + np.linspace(3, 0, num_experts)
    if alike:
        scores = scores[rng.zipf(1.4, size=num_tokens) % 40]
    found = balanced_assignment(torch.from_numpy(scores)).numpy()
    load = np.bincount(found, minlength=num_experts)
    assert load.max() - load.min() <= 1
    total = scores[np.arange(num_tokens), found].sum()
    assert total == pytest.approx(best_of_many(scores), abs=1e-8)


def best_of_many(scores: np.ndarray) -> float:
    """The same as `best_total` in one call: the places above the floor are worth so much less that dummies get them."""
    num_tokens, num_experts = scores.shape
    floor, rest = divmod(num_tokens, num_experts)
    places = np.repeat(np.arange(num_experts), floor)
    if rest:
        # One more place for each expert; dummies, which take only such places, leave `rest` of them.
        places = np.concatenate([places, np.arange(num_experts)])
        dummies = np.full((num_experts - rest, places.size), -1e6)
        dummies[:, num_experts * floor :] = 0.0
        rows, columns = linear_sum_assignment(np.concatenate([scores[:, places], dummies]), maximize=True)
        real = rows < num_tokens
        return float(scores[rows[real], places[columns[real]]].sum())
    rows, columns = linear_sum_assignment(scores[:, places], maximize=True)
    return float(scores[rows, places[columns]].sum())


def test_both_ways_to_ask_scipy_agree() -> None:
    scores = np.random.default_rng(5).normal(size=(23, 5))
    assert best_of_many(scores) == pytest.approx(best_total(scores), abs=1e-9)


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(64, 4), (64, 8), (60, 4)])
def test_larger_ones_too(num_tokens: int, num_experts: int) -> None:
    scores = np.random.default_rng(num_experts).normal(size=(num_tokens, num_experts)) ** 3
    found = balanced_assignment(torch.from_numpy(scores)).numpy()
    assert scores[np.arange(num_tokens), found].sum() == pytest.approx(best_total(scores), abs=1e-9)


def test_ties_and_emptiness() -> None:
    assert balanced_assignment(torch.zeros(6, 3)).bincount(minlength=3).tolist() == [2, 2, 2]
    assert balanced_assignment(torch.zeros(0, 3)).tolist() == []
    assert balanced_assignment(torch.zeros(4, 1)).tolist() == [0] * 4
    with pytest.raises(SpecError, match="finite"):
        balanced_assignment(torch.tensor([[float("nan"), 0.0]]))


def test_base_deals_evenly_while_training_and_takes_the_best_when_serving() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 4) + torch.tensor([3.0, 0.0, 0.0, 0.0])
    served = ask(Base(), logits, 1)
    assert torch.equal(served.expert_ids_TK[:, 0], logits.argmax(-1))
    dealt = ask(Base(), logits, 1, training=True)
    assert load_of(dealt).tolist() == [16] * 4
    torch.testing.assert_close(dealt.weights_TK, torch.sigmoid(logits.gather(1, dealt.expert_ids_TK)))
    total = logits.gather(1, dealt.expert_ids_TK).double().sum()
    assert float(total) == pytest.approx(best_total(logits.double().numpy()), rel=1e-6)


def test_base_leaves_padding_out_and_keeps_a_nan_in_its_token() -> None:
    torch.manual_seed(1)
    logits = torch.randn(40, 4)
    real = torch.arange(40) < 32
    dealt = ask(Base(), logits, 1, training=True, real_T=real)
    assert load_of(dealt, real).tolist() == [8] * 4
    logits[5, 0] = float("nan")
    spoilt = ask(Base(), logits, 1, training=True, real_T=real)
    assert spoilt.weights_TK[torch.arange(40) != 5].isfinite().all()


def test_base_honours_a_mask_as_far_as_even_loads_let_it() -> None:
    torch.manual_seed(2)
    bias = torch.zeros(32, 4)
    bias[:8, 0] = NEG_INF
    dealt = ask(Base(), torch.randn(32, 4), 1, training=True, bias_TE=bias)
    assert (dealt.expert_ids_TK[:8] != 0).all()
    assert load_of(dealt).tolist() == [8] * 4


def test_base_deals_a_masked_expert_without_weight_where_loads_are_even_no_other_way() -> None:
    """Of four tokens three may see the first expert alone; serving sends them there, training only two."""
    bias = torch.zeros(4, 2)
    bias[:3, 1] = NEG_INF
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert ask(Base(), logits, 1, bias_TE=bias).expert_ids_TK[:, 0].tolist() == [0, 0, 0, 1]
    dealt = ask(Base(), logits, 1, training=True, bias_TE=bias)
    assert dealt.expert_ids_TK[3, 0] == 1
    assert load_of(dealt).tolist() == [2, 2]
    (masked,) = (dealt.expert_ids_TK[:3, 0] == 1).nonzero()
    assert dealt.weights_TK[masked].item() == 0.0


def planted(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """512 words of 8 domains around directions of their own, shuffled, and the domain of each."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(8, 24, generator=generator), dim=-1)
    domain_V = torch.arange(512)[torch.randperm(512, generator=generator)] % 8
    return 3 * directions[domain_V] + 0.5 * torch.randn(512, 24, generator=generator), domain_V


def purity(expert_V: torch.Tensor, domain_V: torch.Tensor) -> float:
    """Share of words whose expert is mostly about their own domain."""
    table = torch.zeros(8, 8).index_put_((expert_V, domain_V), torch.tensor(1.0), accumulate=True)
    return float(table.max(-1).values.sum() / table.sum())


def test_centroids_find_planted_domains() -> None:
    x_VD, domain_V = planted()
    found = balanced_assignment(x_VD @ centroids_of(x_VD, 8, 0).t())
    drawn = balanced_assignment(x_VD @ torch.randn(8, 24, generator=torch.Generator().manual_seed(9)).t())
    assert purity(found, domain_V) > 0.95
    assert purity(drawn, domain_V) < 0.7
    assert found.bincount().tolist() == [64] * 8


def test_semantic_base_sends_prompts_of_a_domain_together_from_the_first_step() -> None:
    x_VD, domain_T = planted()
    kinds = {}
    for kind in ("semantic", "learned"):
        moe = moe_of(Base(centroids=kind), 8, 1)
        tensors = {"weight": torch.empty(8, 24)}
        start_gate(moe, tensors, torch.Generator().manual_seed(3), 1.0, Words(x_VD))
        prompts_TD = x_VD + 0.3 * torch.randn(x_VD.shape, generator=torch.Generator().manual_seed(4))
        routed = decide(moe, tensors, GateCall(prompts_TD, 1))
        kinds[kind] = purity(routed.expert_ids_TK[:, 0], domain_T)
    assert kinds["semantic"] > 0.9
    assert kinds["learned"] < 0.75


def test_equal_seeds_give_equal_centroids_and_few_words_are_enough() -> None:
    x_VD, _ = planted()
    assert torch.equal(centroids_of(x_VD, 8, 5), centroids_of(x_VD, 8, 5))
    assert centroids_of(x_VD[:3], 8, 0).isfinite().all()
    assert tensors_of(moe_of(Base(centroids="semantic"), 4, 1), 6)["weight"].shape == (4, 6)
