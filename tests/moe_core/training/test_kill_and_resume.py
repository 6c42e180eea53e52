"""SIGKILL at every point of a checkpoint's write: the run goes on from the last complete one to the same bytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moe_core.training.checkpoint as checkpoint_module

# Early and late: while the first expert learns, and while the router does.
VISITS = {
    "checkpoint.started": 3,
    "checkpoint.file_written": 12,
    "checkpoint.files_written": 5,
    "checkpoint.manifest_written": 2,
    "checkpoint.before_rename": 9,
    "checkpoint.after_rename": 4,
    "checkpoint.done": 8,
}
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def told(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("killed")
    places = [f"{name}@{visit}" for name, visit in VISITS.items()]
    command = [sys.executable, "-m", "tests.moe_core.training.killing", str(world), str(folder), "@", *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_failpoint_of_the_write_is_tried() -> None:
    source = Path(checkpoint_module.__file__).read_text()
    assert set(re.findall(r'failpoint\("([^"]+)"\)', source)) == set(VISITS)


@pytest.mark.faults
@pytest.mark.parametrize("name", VISITS)
def test_a_run_killed_there_ends_with_the_same_bytes(told: dict[str, dict], name: str) -> None:
    whole, killed = told["@"], told[f"{name}@{VISITS[name]}"]
    assert whole["second"] == 0
    assert killed["first"] == -9
    assert killed["second"] == 0
    assert killed["hashes"] == whole["hashes"]
    assert killed["left"] == ["checkpoints", "out"]
