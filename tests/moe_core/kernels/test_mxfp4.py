"""mxfp4: every code stands for its number, rounding goes to the nearest, and what is mxfp4 already stays as it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import SpecError
from moe_core.kernels.mxfp4 import E2M1, Mxfp4, dequantise_mxfp4, quantise_mxfp4


def of_values(values: list[float]) -> Mxfp4:
    return quantise_mxfp4(torch.tensor(values + [0.0] * (32 - len(values))))


def test_every_code_has_its_number_the_even_column_in_the_low_half() -> None:
    codes = torch.tensor([[2 * i | (2 * i + 1) << 4 for i in range(8)] * 2], dtype=torch.uint8)
    values = dequantise_mxfp4(Mxfp4(codes, torch.tensor([[128]], dtype=torch.uint8)), torch.float32)
    both = [*E2M1, *(-value for value in E2M1)]
    assert values[0].tolist() == [2 * value for value in both * 2]


def test_rounding_goes_to_the_nearest_and_between_two_to_the_even_code() -> None:
    # 4 sets the exponent to 2^0.
    given_, wanted = (
        [4.0, 0.25, 0.3, 0.75, 1.25, 1.75, 2.5, -3.5, 2.6],
        [4.0, 0.0, 0.5, 1.0, 1.0, 2.0, 2.0, -4.0, 3.0],
    )
    assert dequantise_mxfp4(of_values(given_), torch.float32)[:9].tolist() == wanted
    # Beyond the largest there is nothing: 7.9 is 6 at the same exponent.
    assert dequantise_mxfp4(of_values([7.9, 5.1]), torch.float32)[:2].tolist() == [6.0, 6.0]


@given(st.integers(0, 2**31), st.integers(1, 250))
@settings(max_examples=40, deadline=None)
def test_what_is_mxfp4_already_stays_exact(seed, exponent) -> None:
    chance = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (3, 48), generator=chance, dtype=torch.uint8)
    exponents = torch.full((3, 3), exponent, dtype=torch.uint8)
    exact = dequantise_mxfp4(Mxfp4(codes, exponents), torch.float32)
    assert torch.equal(dequantise_mxfp4(quantise_mxfp4(exact), torch.float32), exact)


def test_a_group_of_zeros_and_tiny_weights_stay_finite() -> None:
    weight = torch.zeros(2, 64)
    weight[1, 40] = 1e-44
    assert dequantise_mxfp4(quantise_mxfp4(weight), torch.float32).isfinite().all()
    assert not dequantise_mxfp4(quantise_mxfp4(torch.zeros(1, 32)), torch.float32).any()


def test_rows_must_be_whole_groups() -> None:
    with pytest.raises(SpecError, match="multiple of 32"):
        quantise_mxfp4(torch.zeros(2, 40))
