"""What stands between the halves of an expert, compiled alone for each instruction set, against double precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_core.kernels.cpu.native import Library
from tests.moe_core.kernels.cpu.drivers import VECTOR_SETS, printed_by


@pytest.mark.parametrize("isa", VECTOR_SETS)
def test_silu_is_right_to_a_few_roundings(compiled: Library, tmp_path: Path, isa: str) -> None:
    printed = printed_by("gating.cpp", isa, compiled, tmp_path)
    # A short power's 2.9e-6 of -gate in powers of two, whose own rounding at 86 is 124 halves of a unit; a quotient's two units.
    assert 0 < float(printed[0]) < 1.1e-5
    assert printed[1:] == ["0", "2000", "inf", *["1"] * 6]
