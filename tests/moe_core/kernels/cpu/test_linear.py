"""The linear kernel against float64, at odd sizes and between NaN."""

from __future__ import annotations

import pytest
import torch

from moe_core.kernels.cpu.linear import MAX_TOKENS, linear, linear_to_float, supports
from tests.moe_core.kernels.cpu.conftest import assert_close, poisoned


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 7, 8, 13, 16])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (3, 7), (4, 32), (5, 33), (130, 63), (257, 576), (64, 1000)]
)
def test_it_equals_float64_up_to_rounding(kernels, num_tokens: int, rows: int, columns: int) -> None:
    x_TK, weight_OK = poisoned(num_tokens, columns), poisoned(rows, columns, seed=1)
    assert supports(x_TK, weight_OK)
    assert_close(linear(x_TK, weight_OK), x_TK.double() @ weight_OK.double().T, columns)


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 40])
def test_logits_keep_what_bfloat16_would_round_away(kernels, num_tokens: int) -> None:
    x_TK, weight_OK = poisoned(num_tokens, 100), poisoned(50, 100, seed=1)
    truth = x_TK.double() @ weight_OK.double().T
    found = linear_to_float(x_TK, weight_OK)
    assert found.dtype is torch.float32
    assert (found - truth).abs().max() < 1e-4
    assert (found.bfloat16().double() - truth).abs().max() > 1e-3


def test_the_threads_do_not_change_a_bit(kernels) -> None:
    x_TK, weight_OK = poisoned(5, 576), poisoned(4000, 576, seed=1)
    shared = linear(x_TK, weight_OK)
    kernels.set_threads(1)
    assert torch.equal(shared, linear(x_TK, weight_OK))


def test_a_row_does_not_depend_on_its_company(kernels) -> None:
    x_TK, weight_OK = poisoned(13, 200), poisoned(90, 200, seed=1)
    together = linear(x_TK, weight_OK)
    alone = [linear(x_TK[row : row + 1], weight_OK) for row in range(13)]
    assert torch.equal(together, torch.cat(alone))


def test_nan_stays_in_its_own_row(kernels) -> None:
    x_TK, weight_OK = poisoned(6, 40), poisoned(9, 40, seed=1)
    clean = linear(x_TK, weight_OK)
    x_TK[2, 39] = float("nan")
    found = linear(x_TK, weight_OK)
    assert found[2].isnan().all()
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(found[keep], clean[keep])


def test_what_it_does_not_take_goes_to_torch(kernels) -> None:
    weight_OK = poisoned(6, 40)
    many = poisoned(MAX_TOKENS + 1, 40)
    wide = torch.randn(2, 40)
    sliced = poisoned(4, 80)[:, ::2]
    for x_TK, weight in ((many, weight_OK), (wide, weight_OK.float()), (sliced, weight_OK)):
        assert not supports(x_TK, weight)
        assert torch.equal(linear(x_TK, weight), torch.nn.functional.linear(x_TK, weight))
    with torch.enable_grad():
        assert not supports(poisoned(2, 40), weight_OK)
