"""`./turnout bench`: the benchmarks of this checkout, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from standalone.errors import StandaloneError
from standalone.paths import ROOT
from standalone.terminal import say

FOLDER = ROOT / "benchmarks"


def run(_name: str, arguments: list[str]) -> int:
    """Run one benchmark by name, or list them."""
    known = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    if not known:
        raise StandaloneError("this checkout has no benchmarks yet; they will live in benchmarks/")
    if not arguments or arguments[0] in ("-h", "--help", "list"):
        say("usage: ./turnout bench NAME [options]\n\n" + "\n".join(f"  {name}" for name in known))
        return 0
    if arguments[0] not in known:
        raise StandaloneError(f"there is no benchmark {arguments[0]!r}; there are {', '.join(known)}")
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]], cwd=ROOT, check=False
    ).returncode
