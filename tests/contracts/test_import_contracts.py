"""The one-way doors of docs/structures.md are checked by import-linter, and the check itself can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINTER = Path(sys.prefix) / "bin" / "lint-imports"


def test_every_app_and_every_room_is_under_a_contract():
    apps = {path.parent.name for path in (ROOT / "platform").glob("*/__init__.py")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert apps | rooms == set(CONFIG["tool"]["importlinter"]["root_packages"])


def test_every_app_has_a_layer():
    (layers,) = [c["layers"] for c in CONFIG["tool"]["importlinter"]["contracts"] if c["id"] == "layers"]
    named = {name.strip() for layer in layers for name in layer.split("|")}
    assert named == set(CONFIG["tool"]["importlinter"]["root_packages"])


def test_every_app_is_in_the_contract_that_keeps_torch_out_of_the_web():
    (contract,) = [c for c in CONFIG["tool"]["importlinter"]["contracts"] if c["id"] == "web-without-torch"]
    assert set(contract["source_modules"]) == {
        path.parent.name for path in (ROOT / "platform").glob("*/__init__.py")
    }


@pytest.mark.slow
def test_a_door_opened_the_wrong_way_is_noticed(tmp_path):
    """A chain is enough: common → moe_core.spec → torch."""
    for room in ("platform", "moe_core", "workers"):
        shutil.copytree(
            ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "static", "locale")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "moe_core" / "errors.py").open("a") as file:
        file.write("\n\nimport torch\n")
    run = subprocess.run(
        [LINTER, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path / 'platform'}:{tmp_path}"},
    )  # fmt: skip
    assert run.returncode == 1, run.stdout[-2000:]
    assert "moe_core.errors -> torch" in run.stdout
