"""Scales that are whole times a common one, apart and together again; every number by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import SpecError
from moe_core.kernels.factors import MOST, seven_bits, split
from moe_core.kernels.packing import quantise, quantise_torch
from moe_core.spec.quantisation import ExpertQuantSpec

SPEC = ExpertQuantSpec(bits=4, group_size=32, super_group_size=256)


def test_scales_come_apart_and_together() -> None:
    scales = torch.tensor([[3.0, -15.0, 0.0, 6.0, 9.0, 3.0, 3.0, 12.0, -7.0, 2.0]]).half() * 0.25
    common, factors = split(scales, SPEC)
    assert common.tolist() == [[0.75, 0.25]]
    assert factors.tolist() == [[1, -5, 0, 2, 3, 1, 1, 4, -7, 2]]


@pytest.mark.parametrize("bad", [[1.0, 1.5], [1.0, 16.0], [1.0, float("nan")], [float("inf"), 1.0]])
def test_scales_that_have_nothing_in_common_are_refused(bad: list[float]) -> None:
    # A half is whole in thirds; sixteen and seven-eighths of it are not.
    scales = torch.tensor([[*bad, 7 / 8 * bad[1]]]).half()
    with pytest.raises(SpecError, match="leave super_group_size out of the packing, or quantise the model anew"):
        split(scales, SPEC)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.floats(-9, 4), st.booleans())
def test_what_is_quantised_always_comes_apart(width: int, exponent: float, in_torch: bool) -> None:
    weight = torch.randn(4, width, generator=torch.Generator().manual_seed(width)) * 10.0**exponent
    weight[1] = 0.0
    weight[2, : width // 2] *= 1e-6
    packed = (quantise_torch if in_torch else quantise)(weight, SPEC)
    common, factors = split(packed.scales, SPEC)
    again = common.float().repeat_interleave(8, -1)[:, : factors.shape[1]] * factors
    assert torch.equal(again.half(), packed.scales)
    assert int(factors.abs().max()) <= MOST


def test_seven_bits_times_four_are_a_half_exactly() -> None:
    scale = seven_bits(torch.rand(2000, generator=torch.Generator().manual_seed(0)).exp() * 10.0 ** torch.arange(-7, 3).repeat(200))
    for factor in range(1, MOST + 1):
        assert torch.equal((scale * factor).half().float(), scale * factor)


@pytest.mark.parametrize("fields", [{"bits": 8}, {"group_size": 64}, {"symmetric": False}], ids=str)
def test_super_groups_are_for_symmetric_four_bits_in_groups_of_32(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="super_group_size 256 is for 4 bits in symmetric groups of 32"):
        ExpertQuantSpec.parse({"bits": 4, "group_size": 32, "super_group_size": 256, **fields})
