"""Every kernel compiles for five chips that are not here: nothing spills, blocks fit, products run on matrix units.

Compiled in a process of its own, for this one may run kernels in the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from moe_core.kernels.triton.chip import SHARED_BYTES

PAGE = (Path(__file__).parents[4] / "docs" / "reference" / "kernels.md").read_text()
ARCHITECTURES = ("sm80", "sm90", "sm100", "sm120", "gfx942")
# Products of two sides in 16 bits; the weights of the others have 4.
WIDE = ("gate_up/decode", "gate_up/prompt", "weight_gradient", "grouped_gemm/decode", "grouped_gemm/prompt", "grouped_gemm/prompt transposed")  # fmt: skip
PROGRAM = """
import json, sys
from moe_core.kernels.triton import ahead
reports = [(ahead.report(case, sys.argv[1]), case) for case in ahead.cases(sys.argv[1])]
print(json.dumps([{**r.to_dict(), "words": r.words, "multiplies": c.multiplies} for r, c in reports]))
"""
SPILLS = """
import json, sys
from moe_core.kernels.triton import ahead
from moe_core.kernels.triton.tiles import Tile
case = next(case for case in ahead.cases("sm90") if case.name == "gate_up/prompt")
greedy = case.tiled(Tile(128, 256, 64, 4, 3))
print(json.dumps([ahead.compile_case(greedy, "sm90").to_dict(), ahead.report(greedy, "sm90").to_dict()]))
"""


def compiled(program: str, *arguments: str) -> Any:
    """What a program that compiles prints, run without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_fits_its_chip(arch) -> None:
    reports = compiled(PROGRAM, arch)
    assert len(reports) > 10
    for report in reports:
        assert report["spills"] == 0, report
        assert report["shared_bytes"] <= SHARED_BYTES[arch], report
        assert 0 < report["registers"] <= (512 if arch == "gfx942" else 255), report
        assert bool(report["matrix_instructions"]) == report["multiplies"], report
        assert bool(report["intensity"]) == report["multiplies"], report
        if report["multiplies"]:
            at_most = ideal_intensity(*report["tile"])
            assert report["intensity"] <= (1 if report["case"] in WIDE else 4) * at_most * 1.001, report
    if f"Triton {triton.__version__}:" in PAGE:
        column = 2 + ARCHITECTURES.index(arch)
        rows = {
            cells[1].strip(" `"): cells[column].strip() for cells in table_rows() if cells[column].strip()
        }
        assert {report["case"]: report["words"] for report in reports} == rows


def ideal_intensity(rows: int, columns: int, inner: int) -> float:
    """Operations of a tile for each byte of its two sides in 16 bits."""
    return 2 * rows * columns * inner / (2 * (rows + columns) * inner)


def table_rows() -> list[list[str]]:
    """The cells of each kernel in the page's table of machine code."""
    table = PAGE.split("<!-- machine code: begin -->")[1].split("<!-- machine code: end -->")[0]
    return [line.split("|") for line in table.splitlines() if line.startswith("| `")]


def test_a_tile_that_spills_gives_way_to_a_narrower_one() -> None:
    greedy, taken = compiled(SPILLS)
    assert greedy["spills"] > 0
    assert greedy["tile"] == [128, 256, 64]
    assert taken["spills"] == 0
    assert taken["tile"][0] == 128
    assert taken["tile"][1] < 256
