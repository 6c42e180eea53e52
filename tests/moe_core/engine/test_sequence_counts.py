"""The tokens of each sequence are counted by themselves too, to the token, whatever shares its steps."""

from __future__ import annotations

import base64

import numpy as np
import torch

from moe_core.engine.engine import Engine
from moe_core.engine.sequence_counts import SequenceCounts
from tests.moe_core.engine.conftest import Run, serve_spec


def test_a_sequences_counts_are_those_of_its_own_record(mixtral) -> None:
    """Few blocks: somebody is preempted, and what is computed again is not counted again."""
    spec = serve_spec(max_sequences=3, kv_tokens=112, expert_affinity_steps=9)
    run = Run(Engine(spec, mixtral))
    counts, affinity = run.engine.runner.counts, run.engine.scheduler.affinity
    found, taken = {}, counts.take_sequence
    counts.take_sequence = lambda number: found.setdefault(number, taken(number))
    for number in range(5):
        run.submit([3 + number, 9, 4 * number, 7], 40, record_routing=True, ignore_eos=True)
    run.until_done()
    assert affinity is not None and run.engine.scheduler.num_preemptions
    moe = mixtral.spec.moe
    for number, end in run.ends.items():
        num_tokens, visits_LE = found[number]
        raw = np.frombuffer(base64.b64decode(end.routed_experts), "<i4")
        ids_TLK = raw.reshape(-1, mixtral.spec.num_hidden_layers, moe.top_k)[:, list(moe.moe_layers)]
        assert num_tokens == len(ids_TLK) == 43
        for layer, row_E in enumerate(visits_LE):
            assert (
                row_E.tolist() == np.bincount(ids_TLK[:, layer].ravel(), minlength=moe.num_experts).tolist()
            )


def test_who_finds_no_room_is_not_known_and_rows_come_back() -> None:
    counts = SequenceCounts(1, 1, 4)
    rows = [counts.row(number) for number in (7, 8, 7)]
    assert rows == [1, 0, 1]
    counts.add(rows, torch.tensor([[[0], [1], [2]]]), torch.ones(3, dtype=torch.int64))
    assert 8 not in counts and counts.take(8) is None
    num_tokens, visits_LE = counts.take(7) or (0, np.zeros(0))
    assert (num_tokens, visits_LE.tolist()) == (2, [[1, 0, 1, 0]])
    assert counts.row(8) == 1
    counts.add([1], torch.tensor([[[-1]]]), torch.zeros(1, dtype=torch.int64))
    num_tokens, visits_LE = counts.take(8) or (0, np.zeros(0))
    assert (num_tokens, visits_LE.tolist()) == (1, [[0, 0, 0, 0]])
