"""The likeliest token of each row: the first of the largest, and none of a row that is not finite."""

from __future__ import annotations

from array import array

import pytest
import torch

from moe_core.kernels.cpu.native import Library

SIZES = [1, 2, 15, 16, 17, 31, 33, 1000, 49_152]


def largest(kernels: Library, scores_BV: torch.Tensor) -> list[int]:
    found = array("q", [-7] * (len(scores_BV) + 1))
    kernels.largest(scores_BV.data_ptr(), *scores_BV.shape, found.buffer_info()[0])
    assert found.pop() == -7
    return found.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_first_of_the_largest(kernels: Library, size: int) -> None:
    torch.manual_seed(size)
    # Few values, so that many are the largest; in the last rows every place is it once.
    scores = torch.randint(-3, 3, (7, size)).float()
    places = torch.arange(0, size, max(1, size // 40))
    alone = torch.full((len(places), size), -2.5e38)
    alone[torch.arange(len(places)), places] = -2.4e38
    rows = torch.cat([scores, alone])
    wanted = [int((row == row.max()).nonzero()[0]) for row in rows]
    assert largest(kernels, rows) == wanted


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_has_none(kernels: Library, size: int, poison: float) -> None:
    places = list(range(0, size, max(1, size // 40)))
    scores = torch.randn(len(places) + 1, size)
    for row, place in enumerate(places):
        scores[row, place] = poison
    assert largest(kernels, scores) == [-1] * len(places) + [int(scores[-1].argmax())]


def test_values_whose_sum_is_beyond_float32_are_finite(kernels: Library) -> None:
    scores = torch.full((1, 64), 3e38)
    scores[0, 40] = 3.1e38
    assert largest(kernels, scores) == [40]
