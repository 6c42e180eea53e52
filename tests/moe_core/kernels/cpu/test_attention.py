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


def truth(
    q_HD: torch.Tensor,
    k_SGd: torch.Tensor,
    v_SGe: torch.Tensor,
    scale: float | None = None,
    window: int | None = None,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    repeat = q_HD.shape[0] // k_SGd.shape[1]
    k, v = (x[-(window or 0) :].double().repeat_interleave(repeat, 1) for x in (k_SGd, v_SGe))
    scores = torch.einsum("hd,shd->hs", q_HD.double(), k) * (scale or q_HD.shape[1] ** -0.5)
    if sinks_H is not None:
        scores = torch.cat([scores, sinks_H.double()[:, None]], dim=1)
    shares = torch.softmax(scores, -1)[:, : v.shape[0]]
    return torch.einsum("hs,she->he", shares, v)


@pytest.mark.parametrize(
    ("heads", "num_kv", "head_dim"), [(9, 3, 64), (4, 4, 8), (10, 2, 24), (1, 1, 2), (7, 1, 33)]
)
def test_it_equals_float64_up_to_rounding(kernels, heads: int, num_kv: int, head_dim: int) -> None:
    lengths = [1, 15, 16, 17, 128, 129, 300]
    keys, values, tables, own = paged(lengths, num_kv, head_dim)
    # A slice of query and key heads side by side, as the decoder hands them over.
    q_BHd = poisoned(len(lengths), heads + num_kv, head_dim, seed=99)[:, :heads]
    assert supports(q_BHd, keys)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor(lengths), scale=head_dim**-0.5)
    for row, (k, v) in enumerate(own):
        assert_close(found[row], truth(q_BHd[row], k, v), 300)


@pytest.mark.parametrize(
    ("num_tokens", "length"), [(1, 1), (2, 2), (5, 37), (16, 16), (33, 65), (70, 200), (3, 130), (20, 600)]
)
@pytest.mark.parametrize(
    ("heads", "num_kv", "head_dim"), [(9, 3, 64), (4, 4, 8), (10, 2, 24), (1, 1, 2), (7, 1, 33), (26, 2, 40)]
)
def test_a_prompt_equals_float64_up_to_rounding(
    kernels, num_tokens: int, length: int, heads: int, num_kv: int, head_dim: int
) -> None:
    keys, values, tables, own = paged([length], num_kv, head_dim)
    q_THd = poisoned(num_tokens, heads + num_kv, head_dim, seed=99)[:, :heads]
    found = attend_prompt(q_THd, keys, values, tables[0], length, scale=head_dim**-0.5)
    assert found.isfinite().all()
    k, v = own[0]
    for place in range(num_tokens):
        seen = length - num_tokens + place + 1
        wanted = truth(q_THd[place], k[:seen], v[:seen])
        # Each share is rounded to bfloat16, and a head's output too.
        error = (found[place].double() - wanted).abs()
        assert bool((error <= 2.0**-8 * (wanted.abs() + v.abs().max().double()) + 1e-6).all())


@pytest.mark.parametrize("window", [1, 5, 16, 33, 500])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["no sinks", "sinks"])
def test_windows_and_sinks_are_those_of_float64(kernels, window: int, *, has_sinks: bool) -> None:
    heads, num_kv, head_dim, lengths = 10, 2, 24, [1, 16, 37, 200]
    sinks_H = poisoned(heads, seed=7, scale=2.0) if has_sinks else None
    options = {"scale": 0.3, "window": window, "sinks_H": sinks_H}
    keys, values, tables, own = paged(lengths, num_kv, head_dim)
    # What has left the window of the newest token is never read.
    for row, length in enumerate(lengths):
        for place in range(max(0, length - window)):
            keys[tables[row, place // BLOCK], place % BLOCK] = float("nan")
            values[tables[row, place // BLOCK], place % BLOCK] = float("nan")
    q_BHd = poisoned(len(lengths), heads, head_dim, seed=99)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor(lengths), **options)
    for row, (k, v) in enumerate(own):
        assert_close(found[row], truth(q_BHd[row], k, v, **options), 200)


@pytest.mark.parametrize(("num_tokens", "length"), [(5, 37), (70, 200), (3, 130)])
@pytest.mark.parametrize("window", [None, 1, 16, 33])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["no sinks", "sinks"])
def test_a_prompts_windows_and_sinks_are_those_of_float64(
    kernels, num_tokens: int, length: int, window: int | None, *, has_sinks: bool
) -> None:
    heads, num_kv, head_dim = 10, 2, 24
    sinks_H = poisoned(heads, seed=7, scale=2.0) if has_sinks else None
    options = {"scale": 0.3, "window": window, "sinks_H": sinks_H}
    keys, values, tables, own = paged([length], num_kv, head_dim)
    q_THd = poisoned(num_tokens, heads, head_dim, seed=99)
    found = attend_prompt(q_THd, keys, values, tables[0], length, **options)
    k, v = own[0]
    for place in range(num_tokens):
        seen = length - num_tokens + place + 1
        wanted = truth(q_THd[place], k[:seen], v[:seen], **options)
        error = (found[place].double() - wanted).abs()
        assert bool((error <= 2.0**-8 * (wanted.abs() + v.abs().max().double()) + 1e-6).all())


@pytest.mark.parametrize(
    ("heads", "key_dim", "value_dim"), [(1, 2, 1), (17, 24, 16), (40, 41, 33), (128, 72, 64)]
)
def test_values_that_are_the_first_of_their_keys(kernels, heads: int, key_dim: int, value_dim: int) -> None:
    """What latent attention keeps: one head for all queries."""
    length, num_tokens, scale = 70, 9, 0.2
    keys, _, tables, own = paged([length], 1, key_dim)
    k, v = own[0][0], own[0][0][..., :value_dim]
    q_THd, values = poisoned(num_tokens, heads, key_dim, seed=99), keys[..., :value_dim]
    found = attend_prompt(q_THd, keys, values, tables[0], length, scale=scale)
    newest = attend_rows(q_THd[-1:], keys, values, tables, torch.tensor([length]), scale=scale)
    assert found.shape == (num_tokens, heads, value_dim)
    assert_close(newest[0], truth(q_THd[-1], k, v, scale), 200)
    for place in range(num_tokens):
        seen = length - num_tokens + place + 1
        wanted = truth(q_THd[place], k[:seen], v[:seen], scale)
        error = (found[place].double() - wanted).abs()
        assert bool((error <= 2.0**-8 * (wanted.abs() + v.abs().max().double()) + 1e-6).all())


@pytest.mark.parametrize("window", [None, 1, 33, 300])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["no sinks", "sinks"])
def test_a_prompt_is_the_same_however_it_is_cut(kernels, window: int | None, *, has_sinks: bool) -> None:
    """Its tokens' outputs to the bit, in pieces that end within blocks of keys and tiles of queries or at their ends."""
    heads, num_kv, head_dim, length = 9, 3, 40, 600
    sinks_H = poisoned(heads, seed=7, scale=2.0) if has_sinks else None
    options = {"scale": 0.2, "window": window, "sinks_H": sinks_H}
    keys, values, tables, _ = paged([length], num_kv, head_dim)
    q_THd = poisoned(length, heads, head_dim, seed=99)
    whole = attend_prompt(q_THd, keys, values, tables[0], length, **options)
    start = 0
    for size in (1, 3, 60, 200, 248, 88):
        end = start + size
        found = attend_prompt(q_THd[start:end], keys, values, tables[0], end, **options)
        assert torch.equal(found, whole[start:end])
        start = end
    assert start == length


def test_a_prompts_scores_beyond_all_use_are_no_danger(kernels) -> None:
    """Far past what float32 tells apart: the best key takes all."""
    keys, values, tables, own = paged([300], 1, 32)
    q_THd = poisoned(5, 4, 32, seed=3, scale=1e12)
    found = attend_prompt(q_THd, keys, values, tables[0], 300, scale=1.0)
    for t in range(5):
        wanted = truth(q_THd[t], own[0][0][: 296 + t], own[0][1][: 296 + t], 1.0)
        assert_close(found[t], wanted, 300)


def test_prompts_scores_that_rise_from_block_to_block_are_those_of_float64(kernels) -> None:
    """The best key comes last, or first, or in the middle, far above the others: earlier sums are brought to its terms."""
    length, head_dim = 700, 16
    keys, values, tables, own = paged([length], 1, head_dim)
    k, v = own[0]
    q_THd = poisoned(5, 4, head_dim, seed=3, scale=8.0)
    for place in (2, 300, 511, 690):
        keys[tables[0, place // BLOCK], place % BLOCK] = k[place] = 30 * q_THd[-1, place % 4].sign()
        found = attend_prompt(q_THd, keys, values, tables[0], length, scale=0.25)
        for t in range(5):
            seen = length - 4 + t
            wanted = truth(q_THd[t], k[:seen], v[:seen], 0.25)
            error = (found[t].double() - wanted).abs()
            assert bool((error <= 2.0**-8 * (wanted.abs() + v.abs().max().double()) + 1e-6).all())


def test_a_prompt_is_the_same_on_any_number_of_threads(kernels) -> None:
    keys, values, tables, _ = paged([90], 2, 16)
    q_THd = poisoned(50, 6, 16)
    found = attend_prompt(q_THd, keys, values, tables[0], 90, scale=0.25)
    kernels.set_threads(1)
    assert torch.equal(found, attend_prompt(q_THd, keys, values, tables[0], 90, scale=0.25))


@pytest.mark.parametrize("heads", [6, 40])
@pytest.mark.parametrize("lengths", [[300, 5, 129], [300, 5, 129, 16, 128, 257, 1, 40]], ids=["few", "many"])
def test_a_row_is_the_same_alone_and_on_any_number_of_threads(
    kernels, lengths: list[int], heads: int
) -> None:
    """Where there are many, all heads of a stretch of keys are one unit of work; alone each is its own."""
    keys, values, tables, _ = paged(lengths, 2, 40)
    q_BHd = poisoned(len(lengths), heads, 40)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor(lengths), scale=40**-0.5)
    kernels.set_threads(1)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = attend_rows(q_BHd[one], keys, values, tables[one], torch.tensor([length]), scale=40**-0.5)
        assert torch.equal(found[one], alone)


@pytest.mark.parametrize("window", [None, 1100])
def test_a_long_row_is_that_of_float64_alone_and_beside_short_ones(kernels, window: int | None) -> None:
    """All heads of long rows are computed together, and those of short ones each by itself, with the same bits."""
    lengths = [2300, 40, 1000]
    keys, values, tables, own = paged(lengths, 2, 40)
    q_BHd = poisoned(len(lengths), 6, 40)
    options = {"scale": 40**-0.5, "window": window}
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor(lengths), **options)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = attend_rows(q_BHd[one], keys, values, tables[one], torch.tensor([length]), **options)
        assert torch.equal(found[one], alone)
        assert_close(found[row], truth(q_BHd[row], *own[row], **options), length)


def test_what_comes_later_in_a_prompt_changes_nothing_before(kernels) -> None:
    keys, values, tables, _ = paged([40], 1, 8)
    q_THd = poisoned(40, 2, 8)
    before = attend_prompt(q_THd, keys, values, tables[0], 40, scale=0.4)
    keys[tables[0, 2], 5:8] = 100.0
    values[tables[0, 2], 5:8] = -100.0
    after = attend_prompt(q_THd, keys, values, tables[0], 40, scale=0.4)
    assert torch.equal(before[:37], after[:37])
    assert not torch.equal(before[37:], after[37:])


@pytest.mark.parametrize("window", [None, 5, 300])
@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_a_value_that_is_not_finite_reaches_only_the_tokens_that_see_it(
    kernels, window: int | None, strange: float
) -> None:
    """To the bit: no other token, no other column, and no head that reads other values."""
    length, options = 600, {"scale": 0.2, "window": window}
    keys, values, tables, _ = paged([length], 2, 40)
    q_THd = poisoned(length, 6, 40)
    before = attend_prompt(q_THd, keys, values, tables[0], length, **options)
    for place in (0, 37, 255, 511):
        values[tables[0, place // BLOCK], place % BLOCK, 1, place % 40] = strange
    after = attend_prompt(q_THd, keys, values, tables[0], length, **options)
    reached = torch.zeros(length, 6, 40, dtype=torch.bool)
    for place in (0, 37, 255, 511):
        reached[place : place + window if window else length, 3:, place % 40] = True
    assert not after[reached].isfinite().any()
    assert torch.equal(after[~reached], before[~reached])
    # In pieces, too.
    piece = attend_prompt(q_THd[30:60], keys, values, tables[0], 60, **options)
    assert torch.equal(piece.nan_to_num(), after[30:60].nan_to_num())


def test_a_key_that_is_not_a_number_reaches_only_the_tokens_that_see_it(kernels) -> None:
    keys, values, tables, _ = paged([300], 2, 40)
    q_THd = poisoned(300, 6, 40)
    before = attend_prompt(q_THd, keys, values, tables[0], 300, scale=0.2)
    keys[tables[0, 140 // BLOCK], 140 % BLOCK, 0, 7] = float("nan")
    q_THd[20, 5] = float("nan")
    after = attend_prompt(q_THd, keys, values, tables[0], 300, scale=0.2)
    assert after[140:, :3].isnan().all()
    assert after[20, 5].isnan().all()
    before[140:, :3] = after[140:, :3] = 0.0
    before[20, 5] = after[20, 5] = 0.0
    assert torch.equal(after, before)


def test_scores_that_differ_wildly_do_not_overflow(kernels) -> None:
    keys, values, tables, own = paged([40], 1, 8)
    q_BHd = poisoned(1, 2, 8, scale=300.0)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor([40]), scale=8**-0.5)
    assert_close(found[0], truth(q_BHd[0], *own[0]), 200)


def test_a_far_best_key_of_another_stretch_takes_all(kernels) -> None:
    keys, values, tables, own = paged([300], 1, 16)
    q_BHd = poisoned(1, 4, 16, scale=30.0)
    for place in (7, 250):
        keys[tables[0, place // BLOCK], place % BLOCK] = own[0][0][place] = 40 * q_BHd[0, place % 4].sign()
        found = attend_rows(q_BHd, keys, values, tables, torch.tensor([300]), scale=0.25)
        assert_close(found[0], truth(q_BHd[0], *own[0]), 300)


def test_one_rows_nan_is_not_anothers(kernels) -> None:
    keys, values, tables, own = paged([20, 30], 2, 8)
    keys[tables[0, 0], 3] = float("nan")
    q_BHd = poisoned(2, 4, 8)
    found = attend_rows(q_BHd, keys, values, tables, torch.tensor([20, 30]), scale=8**-0.5)
    assert found[0].isnan().all()
    assert_close(found[1], truth(q_BHd[1], *own[1]), 200)


@pytest.mark.parametrize("place", [0, 270, 520, 599])
def test_keys_whose_scores_overflow_leave_the_others_as_they_are(kernels, place: int) -> None:
    """A block or a stretch of nothing but -inf has no share, whatever stands before and behind it."""
    length, head_dim = 600, 16
    keys, values, tables, own = paged([length], 1, head_dim)
    k, v = own[0]
    q_THd = torch.full((5, 2, head_dim), 1e30, dtype=torch.bfloat16)
    for far in range(length):
        keys[tables[0, far // BLOCK], far % BLOCK] = k[far] = 0.0 if far == place else -1e30
    found = attend_prompt(q_THd, keys, values, tables[0], length, scale=0.25)
    newest = attend_rows(q_THd[-1:], keys, values, tables, torch.tensor([length]), scale=0.25)
    for heads in (newest[0], *found[max(0, place - length + 5) :]):
        assert torch.equal(heads, v[place].expand(2, head_dim))


@pytest.mark.parametrize(("sink", "window"), [(float("-inf"), 300), (float("-inf"), None), (float("inf"), 300)])
def test_a_sink_without_end_takes_nothing_or_all(kernels, sink: float, window: int | None) -> None:
    keys, values, tables, _ = paged([600], 2, 24)
    q_THd = poisoned(600, 4, 24)
    options = {"scale": 0.3, "window": window}
    sinks_H = torch.full((4,), sink, dtype=torch.bfloat16)
    found = attend_prompt(q_THd, keys, values, tables[0], 600, **options, sinks_H=sinks_H)
    newest = attend_rows(q_THd[-1:], keys, values, tables, torch.tensor([600]), **options, sinks_H=sinks_H)
    if sink > 0:
        assert not found.any()
        assert not newest.any()
        return
    assert torch.equal(found, attend_prompt(q_THd, keys, values, tables[0], 600, **options))
    assert torch.equal(newest, attend_rows(q_THd[-1:], keys, values, tables, torch.tensor([600]), **options))


@pytest.mark.parametrize("place", [3, 300, 599])
def test_an_infinite_value_of_which_nothing_is_taken_is_no_number_as_in_torch(kernels, place: int) -> None:
    """In prompts and in single rows alike; where there is a share, however small, it is infinite. Other columns stay."""
    keys, values = torch.zeros(38, BLOCK, 1, 8, dtype=torch.bfloat16), torch.ones(38, BLOCK, 1, 8, dtype=torch.bfloat16)
    q_THd = torch.ones(600, 1, 8, dtype=torch.bfloat16)
    values[place // BLOCK, place % BLOCK, 0, 2] = float("inf")
    for below in (50.0, 200.0, 1e4):
        keys[place // BLOCK, place % BLOCK, 0, 5] = -below
        shares = torch.softmax(keys.view(-1, 8)[:600].sum(1).float(), 0)
        wanted = (shares[:, None] * values.view(-1, 8)[:600].float()).sum(0)[2]
        found = attend_prompt(q_THd, keys, values, torch.arange(38), 600, scale=1.0)[599, 0]
        newest = attend_rows(q_THd[-1:], keys, values, torch.arange(38)[None], torch.tensor([600]), scale=1.0)[0, 0]
        for head in (found, newest):
            assert head[2].isnan() if wanted.isnan() else head[2] == wanted
            assert head[[0, 1, 3, 4, 5, 6, 7]].eq(1.0).all()
