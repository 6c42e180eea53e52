"""Sorting choices by expert: a stable permutation, tiles that cover each row once, at any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import SpecError
from moe_core.kernels.triton import align as align_file
from moe_core.kernels.triton.align import Rows, align


def assert_sorted(ids: torch.Tensor, num_experts: int, rows: Rows) -> None:
    flat = ids.reshape(-1).cpu()
    filled = flat >= 0
    truth = torch.argsort(torch.where(filled, flat, num_experts), stable=True)[: int(filled.sum())]
    assert torch.equal(rows.choice_R.cpu()[: truth.numel()], truth.to(torch.int32))
    counts = torch.bincount(flat[filled], minlength=num_experts)
    begin = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    assert torch.equal(rows.begin_E.cpu(), begin.to(torch.int32))
    covered = []
    for expert, row in zip(rows.tile_expert_M.tolist(), rows.tile_row_M.tolist(), strict=True):
        if expert >= 0:
            covered += range(row, min(row + rows.block_m, int(begin[expert + 1])))
    assert covered == list(range(truth.numel()))


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5), st.booleans())
@settings(max_examples=12, deadline=None)
def test_rows_of_any_choice_are_sorted_stably_and_tiled(num_tokens, num_experts, top_k, seed, empty) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chance = torch.Generator().manual_seed(seed)
    low = -1 if empty else 0
    ids = torch.randint(low, num_experts, (num_tokens, top_k), generator=chance).to(device)
    if num_tokens:
        assert_sorted(ids, num_experts, align(ids, num_experts, 16))


@pytest.mark.parametrize("num_tokens", [300, 1025])
def test_many_choices_take_three_launches_and_give_the_same(device, num_tokens) -> None:
    ids = torch.randint(-1, 11, (num_tokens, 2), generator=torch.Generator().manual_seed(1)).to(device)
    assert ids.numel() > align_file.FEW_CHOICES
    assert_sorted(ids, 11, align(ids, 11, 64))


def test_the_two_ways_agree(device, monkeypatch) -> None:
    ids = torch.randint(0, 5, (60, 3), generator=torch.Generator().manual_seed(2)).to(device)
    few = align(ids, 5, 16)
    monkeypatch.setattr(align_file, "FEW_CHOICES", 0)
    many = align(ids, 5, 16)
    for name in ("choice_R", "begin_E", "tile_expert_M", "tile_row_M"):
        assert torch.equal(getattr(few, name), getattr(many, name)), name


def test_an_expert_may_have_all_rows_and_others_none(device) -> None:
    ids = torch.full((33, 1), 2).to(device)
    assert_sorted(ids, 4, align(ids, 4, 16))


def test_it_refuses_what_it_cannot_sort(device) -> None:
    with pytest.raises(SpecError, match="int64 or int32"):
        align(torch.zeros(2, 2, device=device), 4, 16)
    with pytest.raises(SpecError, match="between 1 and 1024"):
        align(torch.zeros(2, 2, dtype=torch.int64, device=device), 2000, 16)
    with pytest.raises(SpecError, match="contiguous"):
        align(torch.zeros(2, 4, dtype=torch.int64, device=device).t(), 4, 16)
