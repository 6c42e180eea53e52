"""The page of the kernels names each kernel and each compiled case."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import moe_core.kernels.triton
from moe_core.kernels.triton import ahead

PAGE = (Path(__file__).parents[4] / "docs" / "reference" / "kernels.md").read_text()
PACKAGE = Path(moe_core.kernels.triton.__file__).parent
# A kernel is what is launched over a grid; its helpers are not.
LAUNCH = re.compile(r"^\s*(?:launch\((?=\w+,)|(?=\w+\[\())(\w+)", re.MULTILINE)
KERNELS = [
    (path.name, name) for path in sorted(PACKAGE.glob("*.py")) for name in LAUNCH.findall(path.read_text())
]


def test_there_are_kernels() -> None:
    assert len({name for _, name in KERNELS}) == 13


@pytest.mark.parametrize(("file", "kernel"), KERNELS)
def test_each_launched_kernel_has_its_row(file, kernel) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{file}` |")]
    assert len(rows) == 1
    assert f"`{kernel}`" in rows[0]


@pytest.mark.parametrize("arch", ahead.TARGETS)
def test_each_compiled_case_has_its_figures(arch) -> None:
    header = next(line for line in PAGE.splitlines() if line.startswith("| kernel | sm80"))
    assert f"| {arch} " in header
    for case in ahead.cases(arch):
        assert f"| `{case.name}` |" in PAGE


def test_what_was_not_timed_is_said_not_to_be() -> None:
    assert "compiled and statically checked, not\ntimed" in PAGE
