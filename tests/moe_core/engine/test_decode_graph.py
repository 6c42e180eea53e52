"""What a recording reads, on any machine; and on a GPU, that replays say what launches say."""

from __future__ import annotations

import pytest
import torch

from moe_core.engine import decode_graph
from moe_core.engine.decode_graph import ROW_NUMBERS, records
from moe_core.engine.engine import Engine
from moe_core.engine.scheduler import Chunk
from tests.moe_core.engine.conftest import DEVICE, Run, serve_spec
from tests.moe_core.tiny import tiny_family

ON_GPU = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: only there are steps recorded")
DOMAINS = [{"code": "a", "name_en": "A", "name_zh": "甲", "experts": [0]}]


def decoding_chunks(mixtral, lengths: list[int]) -> list[Chunk]:
    """Chunks of a step in which every sequence decodes."""
    engine = Engine(serve_spec(), mixtral)
    engine.runner.graphs = None
    run = Run(engine)
    for length in lengths:
        run.submit(list(range(1, length + 1)), 8)
    while True:
        chunks = engine._plan()
        if all(chunk.num_tokens == 1 for chunk in chunks):
            return chunks
        engine.runner.run(chunks)
        engine.scheduler.commit(chunks)
        for chunk in chunks:
            if chunk.wants_sample:
                chunk.sequence.token_ids.append(5)


def test_numbers_are_filled_up_with_rows_that_see_nothing_of_others(mixtral) -> None:
    chunks = decoding_chunks(mixtral, [3, 20, 5])
    numbers = decode_graph._numbers(chunks, 4, 8)
    tokens, positions, slots, ends, domains = (numbers[row * 4 : row * 4 + 4] for row in range(ROW_NUMBERS))
    assert tokens == [5, 5, 5, 0]
    assert positions == [3, 20, 5, 0]
    assert ends == [4, 21, 6, 1]
    assert domains == [-1] * 4
    blocks = [numbers[ROW_NUMBERS * 4 + row * 8 : ROW_NUMBERS * 4 + row * 8 + 8] for row in range(4)]
    assert blocks[3] == [0] * 8
    for chunk, position, slot, own in zip(chunks, positions, slots, blocks, strict=False):
        assert own[: len(chunk.sequence.block_ids)] == chunk.sequence.block_ids
        assert slot == own[position // 16] * 16 + position % 16
    assert slots[3] < 16


def test_a_cpu_and_gates_that_may_ask_the_host_are_not_recorded(mixtral) -> None:
    assert not records(mixtral.spec, torch.device("cpu"))
    assert records(mixtral.spec, torch.device("cuda"))
    moe = mixtral.spec.moe.model_copy(update={"expert_bias": True})
    assert not records(mixtral.spec.model_copy(update={"moe": moe}), torch.device("cuda"))
    clamped = mixtral.spec.model_copy(update={"expert_clamps": (0.0, 0.0, 7.0)})
    assert not records(clamped, torch.device("cuda"))
    plain = {"expert_clamps": (), "dense_clamps": ()}
    assert not records(tiny_family("step3p5").model_copy(update=plain), torch.device("cuda"))


@ON_GPU
@pytest.mark.parametrize("domains", [[], DOMAINS], ids=["no domains", "a prior"])
def test_replays_say_and_count_what_launches_say(mixtral, domains) -> None:
    results = []
    for recorded in (True, False):
        engine = Engine(serve_spec(domains=domains, max_sequences=6), mixtral)
        assert engine.runner.graphs is not None
        if not recorded:
            engine.runner.graphs = None
        run = Run(engine)
        for number, length in enumerate([3, 20, 5, 33, 1]):
            run.submit(
                list(range(1, length + 1)),
                10 + number,
                domain=number % 2 - 1 if domains else -1,
                record_routing=True,
            )
        run.until_done()
        if recorded:
            assert engine.runner.graphs._recordings
            assert engine.runner.graphs._works
        results.append((run.tokens, engine.runner.counts.counts_PNLE.tolist()))
    assert results[0] == results[1]
