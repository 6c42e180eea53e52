"""Paged decode attention against float64: lengths that end anywhere in a block, and NaN wherever it must not look."""

from __future__ import annotations

import pytest
import torch

from moe_core.kernels.cpu.attention import attend_prompt, attend_rows, supports
from tests.moe_core.kernels.cpu.conftest import assert_close, poisoned

BLOCK = 16


def paged(lengths: list[int], num_kv: int, head_dim: int):
    """Keys and values in shuffled blocks; every slot that no row owns is NaN. Also each row's own, in order."""
    num_blocks = sum(-(-length // BLOCK) for length in lengths) + 1
    keys = torch.full((num_blocks, BLOCK, num_kv, head_dim), float("nan"), dtype=torch.bfloat16)
    values = keys.clone()
    free = (torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(4)) + 1).tolist()
    widest = max(-(-length // BLOCK) for length in lengths)
    tables = torch.zeros(len(lengths), widest, dtype=torch.int64)
    own = []
    for row, length in enumerate(lengths):
        k, v = poisoned(length, num_kv, head_dim, seed=row), poisoned(length, num_kv, head_dim, seed=row + 50)
        own.append((k, v))
        for index in range(-(-length // BLOCK)):
            block = tables[row, index] = free.pop()
            part = slice(index * BLOCK, min(length, (index + 1) * BLOCK))
            keys[block, : part.stop - part.start] = k[part]
            values[block, : part.stop - part.start] = v[part]
    return keys, values, tables, own


def truth(q_HD: torch.Tensor, k_SGd: torch.Tensor, v_SGd: torch.Tensor) -> torch.Tensor:
    repeat = q_HD.shape[0] // k_SGd.shape[1]
    k, v = (x.double().repeat_interleave(repeat, 1) for x in (k_SGd, v_SGd))
    scores = torch.einsum("hd,shd->hs", q_HD.double(), k) * q_HD.shape[1] ** -0.5
    return torch.einsum("hs,shd->hd", torch.softmax(scores, -1), v)


@pytest.mark.parametrize(
    ("heads", "num_kv", "head_dim"), [(9, 3, 64), (4, 4, 8), (10, 2, 24), (1, 1, 2), (7, 1, 33)]
)
def test_it_equals_float64_up_to_rounding(kernels, heads: int, num_kv: int, head_dim: int) -> None:
    lengths = [1, 15, 16, 17, 128, 129, 300]
    keys, values, tables, own = paged(lengths, num_kv, head_dim)
    # A slice of query and key heads side by side, as the decoder hands them over.
    q_BHd = poisoned(len(lengths), heads + num_kv, head_dim, seed=99)[:, :heads]
    assert supports(q_BHd, keys, values, head_dim**-0.5)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor(lengths))
    for row, (k, v) in enumerate(own):
        assert_close(found[row], truth(q_BHd[row], k, v), 300)


@pytest.mark.parametrize(
    ("num_tokens", "length"), [(1, 1), (2, 2), (5, 37), (16, 16), (33, 65), (70, 200), (3, 130)]
)
@pytest.mark.parametrize(
    ("heads", "num_kv", "head_dim"), [(9, 3, 64), (4, 4, 8), (10, 2, 24), (1, 1, 2), (7, 1, 33), (26, 2, 40)]
)
def test_a_prompt_equals_float64_up_to_rounding(
    kernels, num_tokens: int, length: int, heads: int, num_kv: int, head_dim: int
) -> None:
    keys, values, tables, own = paged([length], num_kv, head_dim)
    q_THd = poisoned(num_tokens, heads + num_kv, head_dim, seed=99)[:, :heads]
    found = attend_prompt(q_THd, keys, values, tables[0], length)
    assert found.isfinite().all()
    k, v = own[0]
    for place in range(num_tokens):
        seen = length - num_tokens + place + 1
        wanted = truth(q_THd[place], k[:seen], v[:seen])
        # Each share is rounded to bfloat16, and a head's output too.
        error = (found[place].double() - wanted).abs()
        assert bool((error <= 2.0**-8 * (wanted.abs() + v.abs().max().double()) + 1e-6).all())


def test_a_prompt_is_the_same_on_any_number_of_threads(kernels) -> None:
    keys, values, tables, _ = paged([90], 2, 16)
    q_THd = poisoned(50, 6, 16)
    found = attend_prompt(q_THd, keys, values, tables[0], 90)
    kernels.set_threads(1)
    assert torch.equal(found, attend_prompt(q_THd, keys, values, tables[0], 90))


def test_a_row_is_the_same_alone_and_on_any_number_of_threads(kernels) -> None:
    lengths = [300, 5, 129]
    keys, values, tables, _ = paged(lengths, 2, 40)
    q_BHd = poisoned(len(lengths), 6, 40)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor(lengths))
    kernels.set_threads(1)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = attend_rows(q_BHd[one], keys, values, tables[one], torch.tensor([length]))
        assert torch.equal(found[one], alone)


def test_what_comes_later_in_a_prompt_changes_nothing_before(kernels) -> None:
    keys, values, tables, _ = paged([40], 1, 8)
    q_THd = poisoned(40, 2, 8)
    before = attend_prompt(q_THd, keys, values, tables[0], 40)
    keys[tables[0, 2], 5:8] = 100.0
    values[tables[0, 2], 5:8] = -100.0
    after = attend_prompt(q_THd, keys, values, tables[0], 40)
    assert torch.equal(before[:37], after[:37])
    assert not torch.equal(before[37:], after[37:])


def test_scores_that_differ_wildly_do_not_overflow(kernels) -> None:
    keys, values, tables, own = paged([40], 1, 8)
    q_BHd = poisoned(1, 2, 8, scale=300.0)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor([40]))
    assert_close(found[0], truth(q_BHd[0], *own[0]), 200)


def test_a_far_best_key_of_another_stretch_takes_all(kernels) -> None:
    keys, values, tables, own = paged([300], 1, 16)
    q_BHd = poisoned(1, 4, 16, scale=30.0)
    for place in (7, 250):
        keys[tables[0, place // BLOCK], place % BLOCK] = own[0][0][place] = 40 * q_BHd[0, place % 4].sign()
        found = attend_rows(q_BHd, keys, values, tables, torch.tensor([300]))
        assert_close(found[0], truth(q_BHd[0], *own[0]), 300)


def test_one_rows_nan_is_not_anothers(kernels) -> None:
    keys, values, tables, own = paged([20, 30], 2, 8)
    keys[tables[0, 0], 3] = float("nan")
    q_BHd = poisoned(2, 4, 8)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor([20, 30]))
    assert found[0].isnan().all()
    assert_close(found[1], truth(q_BHd[1], *own[1]), 200)
