"""`./turnout lock`: pin every package that run.in and dev.in bring, for every Python and platform at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from standalone.environment import Environment
from standalone.errors import StandaloneError
from standalone.paths import ROOT
from standalone.terminal import say

HEADER = "# Every version that has been tested together; a constraint file, made by `./turnout lock`. Do not edit.\n"
# torch pins its own CUDA libraries, and one version has several wheels (CPU, CUDA): say the version alone.
LEFT_TO_TORCH = re.compile(r"^(nvidia-|cuda-|torch==)")


def run(_name: str, _arguments: list[str]) -> int:
    """Resolve and write the lock."""
    environment = Environment(ROOT)
    uv = Path(sys.prefix) / "bin" / "uv"
    inputs = [str(ROOT / "requirements" / f"{name}.in") for name in ("run", "dev")]
    command = [
        str(uv),
        "pip",
        "compile",
        "--universal",
        "--python-version",
        "3.11",
        *inputs,
        "--no-header",
        "--no-annotate",
    ]
    done = subprocess.run(
        command, env=environment.uv_variables(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StandaloneError(f"the packages could not be resolved:\n{done.stderr.strip()}")
    torch = re.search(r"^torch==([\d.]+)", done.stdout, re.MULTILINE)
    lines = [line for line in done.stdout.splitlines() if line and not LEFT_TO_TORCH.match(line)]
    lines += [f"torch=={torch.group(1)}"] if torch else []
    target = ROOT / "requirements" / "lock.txt"
    target.with_suffix(".tmp").write_text(HEADER + "\n".join(sorted(lines)) + "\n")
    os.replace(target.with_suffix(".tmp"), target)
    say(f"{target}: {len(lines)} packages")
    return 0
