"""Powers of two of sixteen numbers at once, compiled alone for each instruction set, against double precision."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from moe_core.kernels.cpu.build import FLAGS, SOURCES, CompilerError, compiler, instruction_sets
from moe_core.kernels.cpu.native import Library

DRIVER = Path(__file__).with_name("exponential.cpp")


@pytest.mark.parametrize("isa", [name for name in instruction_sets() if name != "amx"])
def test_their_error_is_that_of_two_roundings(compiled: Library, tmp_path: Path, isa: str) -> None:
    before = compiled.isa
    if not compiled.use_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    compiled.use_isa(before)
    try:
        tool = compiler()
    except CompilerError as error:
        pytest.skip(str(error))
    program = tmp_path / "exponential"
    flags = [*FLAGS, *instruction_sets()[isa], f"-DTURNOUT_ISA={isa}", f"-I{SOURCES}"]
    subprocess.run([*tool, *flags, str(DRIVER), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
    # The polynomial's 9.2e-8, and float32's rounding of the steps after it.
    assert 0 < float(printed[0]) < 2.5e-7
    assert printed[1:] == ["1", "0.5", "0", "0", "1"]
