"""What a router's product and its choice owe, compiled alone for each instruction set: any width, any number of experts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from moe_core.kernels.cpu.build import FLAGS, SOURCES, CompilerError, compiler, instruction_sets
from moe_core.kernels.cpu.native import Library

DRIVER = Path(__file__).with_name("gates.cpp")


@pytest.mark.parametrize("isa", [name for name in instruction_sets() if name != "amx"])
def test_logits_do_not_hang_on_company_or_storage_and_choices_are_those_of_plain_loops(
    compiled: Library, tmp_path: Path, isa: str
) -> None:
    before = compiled.isa
    if not compiled.use_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    compiled.use_isa(before)
    try:
        tool = compiler()
    except CompilerError as error:
        pytest.skip(str(error))
    program = tmp_path / "gates"
    flags = [*FLAGS, *instruction_sets()[isa], f"-DTURNOUT_ISA={isa}", f"-I{SOURCES}"]
    subprocess.run([*tool, *flags, str(DRIVER), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
    # Of sums of up to 577 products in float32, as a share of what the terms come to.
    assert 0 < float(printed[0]) < 1e-6
    rows_alike, company, choices = (told == "1" for told in printed[1:])
    assert rows_alike, "rows in bfloat16 and in float32 gave other bits"
    assert company, "a token had other logits alone than beside others"
    assert choices, "another choice than that of the plain loop"
