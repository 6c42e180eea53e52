"""Every kernel under the address and undefined-behaviour sanitizers, at odd sizes, on buffers of exactly their size."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moe_core.kernels.cpu.build import SOURCES, CompilerError, compiler, instruction_sets
from moe_core.kernels.cpu.native import Library

# Some three processor minutes of compiling.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
DRIVER = Path(__file__).with_name("sanitize.cpp")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")


def test_no_kernel_reads_or_writes_out_of_bounds(compiled: Library, tmp_path: Path) -> None:
    """Every set that this processor has, and the code for tiles without the instructions: what these read and write no
    sanitizer sees."""
    sets = {isa: flags for isa, flags in instruction_sets().items() if has(compiled, isa)}
    widest = [isa for isa in sets if isa != "amx"][-1]
    sets["tiles"] = (*sets[widest], "-DTURNOUT_SOFT_TILES")
    try:
        tool = compiler()
    except CompilerError as error:
        pytest.skip(str(error))
    if "ziglang" in tool:
        pytest.skip("the ziglang wheel has no address sanitizer")

    def clean(isa: str) -> subprocess.CompletedProcess[str]:
        program = tmp_path / isa
        sources = [str(SOURCES / "ops.cpp"), str(DRIVER)]
        flags = ["-std=c++17", "-O1", "-pthread", "-DTURNOUT_INPUTS=3", "-Wno-psabi", f"-DTURNOUT_ISA={isa}", f"-I{SOURCES}"]
        subprocess.run([*tool, *flags, *SANITIZERS, *sets[isa], *sources, "-o", str(program)], check=True)
        return subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)

    # As many compilers as cores: each takes most of a gigabyte.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(clean, sets):
            assert done.returncode == 0, done.stderr[-3000:]
            assert done.stdout == "clean\n"


def has(library: Library, isa: str) -> bool:
    """Whether this processor can use a set; the one in use stays."""
    before = library.isa
    try:
        return library.use_isa(isa)
    finally:
        library.use_isa(before)
