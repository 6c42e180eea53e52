"""`./turnout test triton`: the tests of the Triton kernels with each version of Triton that they must pass.

The pinned version is the one of `.venv`. Each other one has a file in `requirements/triton/` and is installed in a folder
of its own under `triton` in the data folder, which stands before `.venv` on Python's path and lends nothing else: so all
versions are tested with the same torch. `--quick` is the part that `./turnout test` runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from standalone.environment import Environment
from standalone.errors import StandaloneError
from standalone.paths import ROOT, data_dir
from standalone.stages import NOT_RUN, UNAVAILABLE
from standalone.terminal import say, step

REQUIREMENTS = ROOT / "requirements"
TESTS = "tests/moe_core/kernels/triton"
STAMP = "installed.txt"
# What the quick part leaves out: compiling every kernel for further chips, most of the time that the tests take. One chip of
# each maker stays, and whatever runs in the interpreter.
COMPILING = f"{TESTS}/test_ahead.py::test_every_kernel_fits_its_chip"
LEFT_OUT = tuple(f"{COMPILING}[{chip}]" for chip in ("sm80", "sm100", "sm120"))


def pinned() -> str:
    """The version of Triton that `.venv` has."""
    found = re.search(r"^triton==([\d.]+)", (REQUIREMENTS / "compute.in").read_text(), re.MULTILINE)
    assert found, "compute.in pins no Triton"
    return found[1]


def versions() -> list[str]:
    """Every version that is tested, oldest first."""
    others = [path.stem for path in (REQUIREMENTS / "triton").glob("*.in")]
    return sorted({pinned(), *others}, key=lambda version: [int(part) for part in version.split(".")])


def folder_of(version: str) -> Path | None:
    """Where another version lies, installed first where it must be; None for the pinned one."""
    if version == pinned():
        return None
    requirements = REQUIREMENTS / "triton" / f"{version}.in"
    folder = data_dir() / "triton" / version
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with step(f"Installing Triton {version} into {folder}"):
        Environment(ROOT).install_beside(folder, requirements)
    stamp.write_text(wanted)
    return folder


def variables(folder: Path | None) -> dict[str, str]:
    """The environment of a run with the version in `folder`; what it compiles is kept apart from other versions'."""
    paths = [str(folder)] if folder else []
    paths += [str(ROOT), str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    cache = data_dir() / "triton" / "cache" / (folder.name if folder else pinned())
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(cache)}


def check(version: str, words: list[str], *, quick: bool = False) -> int:
    """Run the tests with one version, or the quick part of them; pytest's status, `UNAVAILABLE` without that version."""
    try:
        environment = variables(folder_of(version))
    except StandaloneError as error:
        say(f"Triton {version} could not be installed: {error}")
        return UNAVAILABLE
    # A test that ran with another version than it says would prove nothing.
    shown = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    found = subprocess.run(shown, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    if found.stdout.strip() != version:
        say(f"Triton {found.stdout.strip()} was found where {version} was installed")
        return 1
    left_out = [word for test in LEFT_OUT if quick for word in ("--deselect", test)]
    plugins = ["-p", "no:django", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, TESTS, *left_out, "-q", *words]
    say(f"\n----- Triton {version}")
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def main(arguments: list[str]) -> int:
    """Test every version, or the ones named."""
    parser = argparse.ArgumentParser(prog="./turnout test triton", description=__doc__)
    parser.add_argument(
        "--triton-version", action="append", choices=versions(), help="only this one (may be repeated)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a part of the tests, with the versions beside the pinned one"
    )
    chosen, words = parser.parse_known_args(arguments)
    wanted = chosen.triton_version or [
        version for version in versions() if not (chosen.quick and version == pinned())
    ]
    return verdict({version: check(version, words, quick=chosen.quick) for version in wanted})


def verdict(statuses: dict[str, int]) -> int:
    """Say how each version ended; 0 when all passed, `UNAVAILABLE` when no more is wrong than that some are missing."""
    missing = [version for version, status in statuses.items() if status == UNAVAILABLE]
    failed = [version for version, status in statuses.items() if status not in (0, UNAVAILABLE)]
    if failed:
        say(f"\nFailed with Triton {', '.join(failed)}")
    if missing:
        say(f"\n{'' if failed else NOT_RUN}Triton {', '.join(missing)} could not be installed (see above)")
    if not failed and not missing:
        say(f"\nPassed with Triton {', '.join(statuses)}")
    return 1 if failed else UNAVAILABLE if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
