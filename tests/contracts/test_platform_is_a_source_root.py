"""`platform/` is a source root: anything that makes it a package shadows Python's own module `platform`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_platform_has_no_init_and_no_loose_modules():
    loose = sorted(path.name for path in (ROOT / "platform").glob("*.py"))
    assert loose == [], (
        "platform/*.py would be importable beside the apps, and __init__.py breaks every program"
    )


def test_pytest_keeps_the_prepend_import_mode():
    """`importlib` puts a dummy `platform` into sys.modules and Django dies."""
    assert "import-mode" not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("folder", [".", "platform", "tests"])
@pytest.mark.parametrize("flags", [[], ["-P"]], ids=["plain", "safe-path"])
def test_import_platform_finds_the_standard_library(folder, flags):
    command = [sys.executable, *flags, "-c", "import platform; print(platform.__file__); platform.machine()"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    run = subprocess.run(
        command, cwd=ROOT / folder, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(run.stdout.strip()).name == "platform.py"
    assert ROOT not in Path(run.stdout.strip()).parents
