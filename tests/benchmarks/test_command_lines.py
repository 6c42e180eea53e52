"""Every script of the benchmarks starts: it can be imported, and those with a command line tell it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("")
    for path in (ROOT / "benchmarks").rglob("*.py")
    if path.name != "__init__.py"
)
NAMES = [".".join(path.parts) for path in MODULES]
COMMANDS = [
    name
    for path, name in zip(MODULES, NAMES, strict=True)
    if "ArgumentParser(" in (ROOT / path.with_suffix(".py")).read_text()
]
# What a peer's environment has and ours has not: such a front is started there alone.
FOREIGN = {"openvino", "openvino_genai", "vllm", "optimum", "triton"}
IMPORTING = """
import importlib, json, sys, traceback
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        print(json.dumps([name, missing, traceback.format_exc()[-600:]]))
"""


def _environment() -> dict[str, str]:
    paths = [str(ROOT / "platform"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_every_module_can_be_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, *NAMES],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    failed = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [
        f"{name}: {why}"
        for name, missing, why in failed
        if missing is None
        or missing.partition(".")[0] not in FOREIGN
        or importlib.util.find_spec(missing.partition(".")[0])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_line_tells_its_options(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    # Whoever asks for help gets words about the options, not a measurement.
    assert re.match(r"usage: ", done.stdout) and "--help" in done.stdout


def test_there_are_command_lines_to_ask() -> None:
    assert {
        "benchmarks.against",
        "benchmarks.compare",
        "benchmarks.engine.speed",
        "benchmarks.gpu.layer",
    } <= set(COMMANDS)
