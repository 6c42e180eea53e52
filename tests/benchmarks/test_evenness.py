"""The script behind the figures of even gates: its measure, and what it measures of gates and tables."""

from __future__ import annotations

import pytest
import torch

from benchmarks.evenness import drawn_max_vio, max_vio, tables_max_vio
from moe_core.spec.gate import Quantile, SoftmaxTopk


def test_the_measure_is_the_busiest_load_over_the_mean() -> None:
    assert max_vio(torch.tensor([[0, 1], [2, 3]]), 4) == 0.0
    # Loads 3, 1, 0, 0: the mean is one.
    assert max_vio(torch.tensor([[0, 1], [0, 0]]), 4) == 2.0


@pytest.mark.parametrize("seed", range(3))
def test_quantile_evens_what_a_plain_gate_leaves(seed: int) -> None:
    plain, evened = (drawn_max_vio(gate, 64, 8, 5.0, 5.0, 1024, seed) for gate in (SoftmaxTopk(), Quantile()))
    assert plain > 1.0
    assert evened < 0.1


def test_counting_a_text_like_the_one_that_is_read_evens_a_table() -> None:
    generator = torch.Generator().manual_seed(0)
    weights_V = 1.0 / torch.arange(1, 2001)[torch.randperm(2000, generator=generator)]
    ids = torch.multinomial(weights_V, 40_000, replacement=True, generator=generator).tolist()
    found = tables_max_vio(ids, 2000, seed=1)
    assert found["counted"] < 0.1
    assert found["counted"] < 0.5 * min(found["random"], found["by rank"])
