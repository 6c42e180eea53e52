"""Powers of two of sixteen numbers at once, compiled alone for each instruction set, against double precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_core.kernels.cpu.native import Library
from tests.moe_core.kernels.cpu.drivers import VECTOR_SETS, printed_by


@pytest.mark.parametrize("isa", VECTOR_SETS)
def test_their_error_is_that_of_two_roundings(compiled: Library, tmp_path: Path, isa: str) -> None:
    printed = printed_by("exponential.cpp", isa, compiled, tmp_path)
    # The polynomial's 9.2e-8, and float32's rounding of the steps after it.
    assert 0 < float(printed[0]) < 2.5e-7
    assert printed[1:7] == ["1", "0.5", "0", "0", "1", "0"]


@pytest.mark.parametrize("isa", VECTOR_SETS)
def test_those_of_shares_are_far_nearer_than_the_rounding_that_follows(
    compiled: Library, tmp_path: Path, isa: str
) -> None:
    printed = printed_by("exponential.cpp", isa, compiled, tmp_path)[7:]
    # 2^-9 is what bfloat16 rounds by.
    assert 0 < float(printed[0]) < 3.2e-6
    assert printed[1:] == ["1", "0.5", "0", "0", "1"]
