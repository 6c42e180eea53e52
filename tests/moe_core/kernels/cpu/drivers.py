"""Small programs that include the kernels' own headers, compiled for one instruction set and run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from moe_core.kernels.cpu.build import FLAGS, SOURCES, CompilerError, compiler, instruction_sets
from moe_core.kernels.cpu.native import Library

# Those that compute without tiles.
VECTOR_SETS = [name for name in instruction_sets() if name != "amx"]


def printed_by(driver: str, isa: str, compiled: Library, folder: Path) -> list[str]:
    """The words that a driver of this folder prints; the test is left out where processor or compiler is missing."""
    before = compiled.isa
    if not compiled.use_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    compiled.use_isa(before)
    try:
        tool = compiler()
    except CompilerError as error:
        pytest.skip(str(error))
    program = folder / "driver"
    flags = [*FLAGS, *instruction_sets()[isa], f"-DTURNOUT_ISA={isa}", f"-I{SOURCES}"]
    subprocess.run([*tool, *flags, str(Path(__file__).with_name(driver)), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
