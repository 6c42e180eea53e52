"""What a router's product and its choice owe, compiled alone for each instruction set: any width, any number of experts."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_core.kernels.cpu.native import Library
from tests.moe_core.kernels.cpu.drivers import VECTOR_SETS, printed_by


@pytest.mark.parametrize("isa", VECTOR_SETS)
def test_logits_do_not_hang_on_company_or_storage_and_choices_are_those_of_plain_loops(
    compiled: Library, tmp_path: Path, isa: str
) -> None:
    printed = printed_by("gates.cpp", isa, compiled, tmp_path)
    # Of sums of up to 577 products in float32, as a share of what the terms come to.
    assert 0 < float(printed[0]) < 1e-6
    rows_alike, company, choices = (told == "1" for told in printed[1:])
    assert rows_alike, "rows in bfloat16 and in float32 gave other bits"
    assert company, "a token had other logits alone than beside others"
    assert choices, "another choice than that of the plain loop"
