"""Counts are whole whenever they are read, and cost a decoding step no more than keeping what it chose."""

from __future__ import annotations

import pytest
import torch

from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Chunk
from moe_core.engine.sequence import Sequence
from moe_core.routers import Routing
from moe_core.spec import MoeSpec
from tests.moe_core.engine.conftest import PlainStream

NUM_LAYERS, NUM_EXPERTS, ROOM = 3, 4, 8


@pytest.fixture
def counts() -> RoutingCounts:
    moe = MoeSpec(
        moe_layers=tuple(range(NUM_LAYERS)), num_experts=NUM_EXPERTS, top_k=2, moe_intermediate_size=8
    )
    # Expert 1 is the first domain's own, expert 2 the second's.
    labels_NE = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float32)
    return RoutingCounts(moe, labels_NE, ROOM)


def chunk(domain: int, start: int, end: int, num_prompt_tokens: int = 4) -> Chunk:
    words = list(range(max(end, num_prompt_tokens)))
    params = SamplingParams(max_tokens=9)
    one = Sequence(1, "", words, num_prompt_tokens, params, Detokenizer(PlainStream()), domain=domain)
    one.num_counted_tokens = start
    return Chunk(one, start, end)


def choose(counts: RoutingCounts, ids_TK: list[list[int]]) -> None:
    chosen = torch.tensor(ids_TK)
    scores_TE = torch.zeros(chosen.shape[0], NUM_EXPERTS)
    for layer in range(NUM_LAYERS):
        counts.observe(layer, Routing(chosen, torch.ones(chosen.shape), scores_TE, scores_TE))


def test_steps_are_kept_and_added_up_when_somebody_reads(counts: RoutingCounts) -> None:
    for number in range(2 * ROOM + 3):
        choose(counts, [[number % 4, 3]])
        counts.end_of_step([chunk(number % 2, 4 + number, 5 + number)])
        assert len(counts._rows) <= ROOM
    assert counts._rows
    found = counts.counts_PNLE
    assert not counts._rows
    assert int(found[0].sum()) == 0
    assert found[1].sum((0, 1)).tolist() == [15, 15, 15, 69]
    assert torch.equal(counts.counts_PNLE, found)
    # Of the first domain come experts 0 and 2, of the second 1 and 3: neither has its own.
    assert counts.reach_PN2[1].tolist() == [[0, 0], [30, 0], [27, 0]]


def test_a_prompt_that_fills_the_room_follows_steps_that_are_kept(counts: RoutingCounts) -> None:
    choose(counts, [[0, 1]])
    counts.end_of_step([chunk(0, 4, 5)])
    choose(counts, [[1, 2]] * ROOM)
    counts.end_of_step([chunk(1, 0, ROOM, num_prompt_tokens=ROOM)])
    assert counts.counts_PNLE[0, 2].tolist() == [[0, ROOM, ROOM, 0]] * NUM_LAYERS
    assert counts.counts_PNLE[1, 1].tolist() == [[1, 1, 0, 0]] * NUM_LAYERS
    assert counts.reach_PN2.tolist() == [[[0, 0], [0, 0], [24, 24]], [[0, 0], [3, 3], [0, 0]]]


def test_what_is_kept_is_forgotten_with_the_rest(counts: RoutingCounts) -> None:
    choose(counts, [[0, 1]])
    counts.end_of_step([chunk(0, 4, 5)])
    counts.forget()
    assert int(counts.counts_PNLE.sum()) == int(counts.reach_PN2.sum()) == 0
