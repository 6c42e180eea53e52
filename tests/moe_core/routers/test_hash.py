"""Hash gates: a table decides, and the balanced one evens out a stream whose words are not equally frequent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers import GateCall, decide
from moe_core.routers.hash import balanced_table, clustered_table, random_table, rank_counts
from moe_core.spec.gate import Hash
from tests.moe_core.routers.gate_cases import VOCAB, moe_of, tensors_of

NEG_INF = float("-inf")
WORDS = torch.arange(VOCAB)


def ask_words(gate: Hash, words_T: Tensor = WORDS, top_k: int = 2, **call: object):
    moe = moe_of(gate, 4, top_k)
    tensors = tensors_of(moe, 6)
    hidden_TD = torch.randn(words_T.shape[0], 6, generator=torch.Generator().manual_seed(0))
    return tensors, decide(
        moe, tensors, GateCall(hidden_TD, top_k, token_ids_T=words_T, num_experts=4, **call)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", ["random", "balanced", "clustered"])
def test_a_word_always_goes_to_the_experts_of_its_row(choice: str) -> None:
    tensors, found = ask_words(Hash(choice=choice), torch.tensor([3, 9, 3]))
    assert torch.equal(found.expert_ids_TK, tensors["table"][torch.tensor([3, 9, 3])].long())
    assert (found.weights_TK == 0.5).all()
    table = tensors["table"].long()
    assert ((table >= 0) & (table < 4)).all()
    assert (table[:, 0] != table[:, 1]).all()


def variation(table_VK: Tensor, stream_T: Tensor) -> float:
    load = torch.bincount(table_VK[stream_T].flatten(), minlength=8).double()
    return float(load.std(correction=0) / load.mean())


def test_balancing_by_frequency_evens_out_a_zipf_stream() -> None:
    generator = torch.Generator().manual_seed(0)
    # Frequencies by rank; the words are numbered in another order.
    counts = rank_counts(2000)[torch.randperm(2000, generator=generator)]
    stream = torch.multinomial(counts, 50_000, replacement=True, generator=generator)
    balanced = variation(balanced_table(counts, 8, 2, 0), stream)
    drawn = [variation(random_table(2000, 8, 2, seed), stream) for seed in range(5)]
    assert balanced < 0.03
    assert balanced < 0.3 * min(drawn)


@pytest.mark.parametrize("num_seen", [0, 1, 300])
@pytest.mark.parametrize("scale", [1, 1000])
def test_words_that_were_never_counted_are_spread_over_all_experts(num_seen: int, scale: int) -> None:
    """Eight experts, top 2; as integers and as shares, for what counts is how entries compare."""
    counts = torch.zeros(4000, dtype=torch.int64)
    counts[:num_seen] = scale * (1 + torch.arange(num_seen) % 7)
    for counted in (counts, counts.float() / max(1, int(counts.sum()))):
        table = balanced_table(counted, 8, 2, 0)
        unseen_E = torch.bincount(table[num_seen:].flatten(), minlength=8)
        assert int(unseen_E.min()) > 0.9 * unseen_E.double().mean()
        assert (table[:, 0] != table[:, 1]).all()
        # Those that were counted stay even by themselves.
        load_E = torch.zeros(8, dtype=torch.float64)
        load_E.index_add_(0, table.flatten(), counts.double().repeat_interleave(2))
        assert num_seen < 300 or float(load_E.max() / load_E.mean()) < 1.02


def test_clusters_hold_words_of_like_meaning_in_equal_numbers() -> None:
    generator = torch.Generator().manual_seed(1)
    kind_V = torch.arange(400) % 4
    embedding = torch.randn(4, 16, generator=generator)[kind_V] + 0.1 * torch.randn(
        400, 16, generator=generator
    )
    table = clustered_table(embedding, 4, 2, 0)
    assert torch.bincount(table[:, 0]).tolist() == [100] * 4
    assert all(table[kind_V == kind, 0].unique().numel() == 1 for kind in range(4))


def test_equal_seeds_give_equal_tables() -> None:
    assert torch.equal(random_table(50, 8, 2, 3), random_table(50, 8, 2, 3))
    assert not torch.equal(random_table(50, 8, 2, 3), random_table(50, 8, 2, 4))


def test_a_masked_expert_gives_way_to_the_next_one() -> None:
    tensors, plain = ask_words(Hash())
    bias = torch.tensor([0.0, NEG_INF, 0.0, 0.0]).expand(VOCAB, -1)
    _, found = ask_words(Hash(), bias_TE=bias)
    assert (found.expert_ids_TK != 1).all()
    untouched = (plain.expert_ids_TK != 1).all(-1)
    assert torch.equal(found.expert_ids_TK[untouched], plain.expert_ids_TK[untouched])
    row = (
        tensors["table"].long().tolist().index([1, 2]) if [1, 2] in tensors["table"].long().tolist() else None
    )
    assert row is None or found.expert_ids_TK[row].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("masked", "expected"),
    [([1], [3, 2]), ([3], [1, 0]), ([1, 3], [0, 2]), ([0, 3], [1, 2]), ([1, 2], [3, 0]), ([0, 2, 3], [1, -1]), ([0, 1, 2], [3, -1])],
)  # fmt: skip
def test_the_next_one_is_that_after_the_masked_one(masked: list[int], expected: list[int]) -> None:
    """Of a row [3, 1] of four experts; after the last comes the first."""
    bias_TE = torch.zeros(VOCAB, 4)
    bias_TE[:, masked] = NEG_INF
    moe = moe_of(Hash(), 4, 2)
    table_VK = torch.tensor([[3.0, 1.0]] * VOCAB)
    call = GateCall(torch.zeros(VOCAB, 4), 2, token_ids_T=torch.arange(VOCAB), num_experts=4, bias_TE=bias_TE)
    found = decide(moe, {"table": table_VK}, call)
    assert found.expert_ids_TK.tolist() == [expected] * VOCAB


def test_learned_weights_teach_a_gate_over_the_tables_experts() -> None:
    tensors, found = ask_words(Hash(weights="learned"))
    chosen = found.logits_TE.gather(1, tensors["table"].long())
    torch.testing.assert_close(found.weights_TK, torch.softmax(chosen, -1))
    found.weights_TK[:, 0].sum().backward()
    assert tensors["weight"].grad is not None
    assert tensors["weight"].grad.abs().sum() > 0
    torch.testing.assert_close(found.probs_TE.sum(-1), torch.ones(VOCAB))


def test_it_says_what_it_needs() -> None:
    moe = moe_of(Hash(), 4, 2)
    with pytest.raises(SpecError, match="token_ids_T"):
        decide(moe, tensors_of(moe, 6), GateCall(torch.zeros(2, 6), 2))
    _, found = ask_words(Hash(), torch.empty(0, dtype=torch.long))
    assert found.expert_ids_TK.shape == (0, 2)
