"""Every kernel under the address and undefined-behaviour sanitizers, at odd sizes, on buffers of exactly their size."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moe_core.kernels.cpu.build import SOURCES, CompilerError, compiler, instruction_sets
from moe_core.kernels.cpu.native import Library

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).with_name("sanitize.cpp")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")


def test_no_kernel_reads_or_writes_out_of_bounds(compiled: Library, tmp_path: Path) -> None:
    """The set that this processor uses, the plain one that any has, and the code for tiles without the instructions."""
    best = "avx512_bf16" if compiled.isa == "amx" else compiled.isa
    sets = {isa: instruction_sets()[isa] for isa in {best, "generic"}}
    sets["tiles"] = (*instruction_sets()[best], "-DTURNOUT_SOFT_TILES")
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

    with ThreadPoolExecutor() as pool:
        for done in pool.map(clean, sets):
            assert done.returncode == 0, done.stderr[-3000:]
            assert done.stdout == "clean\n"
