"""An environment of a peer's own, made once; what cannot be made is told with its reason."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.home import Home

NICENESS = 5
MAKE_PATIENCE_S = 3600.0


class Unavailable(Exception):
    """A peer cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with exact versions, and modules that are taken out again."""

    name: str
    requirements: tuple[str, ...]
    without: tuple[str, ...] = ()

    def python(self, home: Home) -> Path:
        """Its interpreter; the environment is made when it is not there or was made for other versions.

        Raises:
            Unavailable: when a package cannot be installed.
        """
        folder = home.folder("environments") / self.name
        python, stamp = folder / "bin" / "python", folder / "made-for"
        wanted = hashlib.sha256(repr((self.requirements, self.without)).encode()).hexdigest()
        if not (stamp.exists() and stamp.read_text() == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            log = home.logs / f"install-{self.name}.log"
            log.unlink(missing_ok=True)
            call([uv(), "venv", "-q", "--python", sys.executable, str(folder)], log)
            call([uv(), "pip", "install", "-q", "--python", str(python), *self.requirements], log)
            if self.without:
                call([uv(), "pip", "uninstall", "-q", "--python", str(python), *self.without], log)
            stamp.write_text(wanted)
        return python


def uv() -> str:
    """The installer that is quick."""
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        raise Unavailable("uv is not installed: it makes the peers' environments")
    return found


def call(command: list[str], log: Path, cwd: Path | None = None, **environment: str) -> None:
    """Run a command politely, with its output in a log.

    Raises:
        Unavailable: when it fails, with the end of what it said.
    """
    told = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", ""), **environment}
    with log.open("a") as output:
        try:
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=told, check=False,
                timeout=MAKE_PATIENCE_S, preexec_fn=lambda: os.nice(NICENESS) and None,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        tail = " ".join(log.read_text(errors="replace").split())[-400:]
        raise Unavailable(f"{Path(command[0]).name} {command[1]} ended with status {done.returncode}: {tail}")
