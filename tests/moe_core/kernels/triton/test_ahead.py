"""Every kernel compiles for five chips that are not here: nothing spills, blocks fit, products run on matrix units.

Compiled in a process of its own, for this one may run kernels in the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from moe_core.kernels.triton.chip import SHARED_BYTES

ARCHITECTURES = ("sm80", "sm90", "sm100", "sm120", "gfx942")
PROGRAM = """
import json, sys
from moe_core.kernels.triton import ahead
print(json.dumps([
    {**ahead.compile_case(case, sys.argv[1]).to_dict(), "multiplies": case.multiplies}
    for case in ahead.cases(sys.argv[1])
]))
"""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_fits_its_chip(arch) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arch],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(done.stdout)
    assert len(reports) > 10
    for report in reports:
        assert report["spills"] == 0, report
        assert report["shared_bytes"] <= SHARED_BYTES[arch], report
        assert 0 < report["registers"] <= (512 if arch == "gfx942" else 255), report
        assert bool(report["matrix_instructions"]) == report["multiplies"], report
