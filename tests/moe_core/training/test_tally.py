"""Counts and sums of a run, against numbers worked out by hand and against laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_core.routers import Routing
from moe_core.routers.mapped import mapped_hits
from moe_core.training.tally import Tally


def routing_of(ids: list[list[int]], num_experts: int = 4) -> Routing:
    ids_TK = torch.tensor(ids)
    logits_TE = torch.zeros(len(ids), num_experts)
    probs_TE = torch.softmax(logits_TE, -1)
    return Routing(ids_TK, probs_TE.gather(1, ids_TK), logits_TE, probs_TE)


def test_a_token_hits_when_any_of_its_experts_is_its_domains() -> None:
    labels_NE = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]])
    ids_TK = torch.tensor([[0, 3], [3, 0], [1, 3], [2, 1], [0, 3], [0, 1]])
    domain_T = torch.tensor([0, 0, 1, 1, 1, -1])
    assert mapped_hits(ids_TK, labels_NE, domain_T).tolist() == [True, True, True, True, False, False]


def counted(ids: list[list[int]], domains: list[int], real: list[bool]) -> Tally:
    tally = Tally.empty((3,), ("a", "b"), torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]))
    domain_T, real_T = torch.tensor(domains), torch.tensor(real)
    tally.count_routing(3, routing_of(ids), real_T, domain_T)
    tally.count_tokens(real_T, domain_T)
    return tally


def test_counts_are_exact_and_padding_never_enters() -> None:
    tally = counted(
        [[0, 1], [1, 2], [0, 3], [3, 2], [0, 1]], [0, 1, 0, -1, 0], [True, True, True, True, False]
    )
    assert tally.load_NLE[0, 0].tolist() == [2, 1, 0, 1]
    assert tally.load_NLE[1, 0].tolist() == [0, 1, 1, 0]
    assert tally.load_NLE[2, 0].tolist() == [0, 0, 1, 1]
    assert tally.tokens_N.tolist() == [2, 1, 1]
    assert int(tally.load_LE.sum()) == 2 * int(tally.tokens_N.sum())


def test_mapped_share_leaves_out_tokens_of_no_domain() -> None:
    tally = counted([[0, 1], [2, 3], [1, 2], [2, 3]], [0, 0, 1, -1], [True] * 4)
    assert tally.mapped_share() == pytest.approx(2 / 3)
    assert tally.share_by_domain() == {"a": pytest.approx(0.5), "b": pytest.approx(1.0)}


def test_without_mapped_tokens_there_is_no_share_to_speak_of() -> None:
    assert counted([[0, 1]], [-1], [True]).mapped_share() is None


def test_the_loss_is_the_mean_over_domains_of_each_domains_mean() -> None:
    tally = Tally.empty((0,), ("a", "b"), torch.zeros(2, 4))
    tally.count_losses(torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 0, 1]))
    assert tally.loss_by_domain() == {"a": pytest.approx(2.0), "b": pytest.approx(10.0)}
    assert tally.mean_loss() == pytest.approx(6.0)


def test_hesitation_is_one_for_a_router_that_cannot_tell() -> None:
    assert counted([[0, 1], [2, 3]], [0, 1], [True, True]).hesitation() == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.permutations(range(4)), st.integers(-1, 1), st.booleans()), min_size=1, max_size=40)
)
def test_counting_in_two_parts_is_counting_at_once(tokens: list[tuple[list[int], int, bool]]) -> None:
    ids = [order[:2] for order, _, _ in tokens]
    domains, real = [domain for _, domain, _ in tokens], [is_real for _, _, is_real in tokens]
    whole = counted(ids, domains, real)
    half = len(tokens) // 2
    parts = [counted(ids[s], domains[s], real[s]) for s in (slice(0, half), slice(half, None)) if ids[s]]
    assert torch.equal(sum(part.load_NLE for part in parts), whole.load_NLE)
    assert torch.equal(sum(part.hits_NL for part in parts), whole.hits_NL)
