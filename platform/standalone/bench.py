"""`./turnout bench`: the benchmarks of this checkout, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from standalone.build import KernelBuild
from standalone.errors import StandaloneError
from standalone.paths import ROOT
from standalone.terminal import say

# The first is what runs without a name.
BENCHMARKS = {
    "against": (
        "benchmarks.against",
        "against the peers, each behind its server; --minutes, --peers (or PEERS=), --home",
    ),
    "compare": (
        "benchmarks.compare",
        "in process against transformers; --quick checks the floors",
    ),
    "training": (
        "benchmarks.training",
        "a training step against transformers: whole, gates only, from scratch",
    ),
    "switches": ("benchmarks.switches", "what gate, domain prior and statistics cost a decoding step"),
    "neighbour": (
        "benchmarks.neighbour",
        "decoding beside busy processes: one thread, all, and the engine's choice",
    ),
    "http": ("benchmarks.engine.http_path", "what lies between the engine and a client, process by process"),
    "speed": ("benchmarks.engine.speed", "tokens a second of given model directories, kernels and threads"),
}


def run(_name: str, arguments: list[str]) -> int:
    """Run one benchmark by name (default: against the peers; with --quick the short comparison), or list them."""
    if arguments and not arguments[0].startswith("-"):
        name, rest = arguments[0], arguments[1:]
    else:
        name, rest = "compare" if "--quick" in arguments else "against", arguments
    if name == "list":
        say("\n".join(f"  {known:<10}{what}" for known, (_, what) in BENCHMARKS.items()))
        return 0
    if name not in BENCHMARKS:
        raise StandaloneError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    KernelBuild().finish()
    module, _ = BENCHMARKS[name]
    # The peers' benchmark starts a whole instance and speaks to its API.
    paths = [str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", module, *rest]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def quick() -> int:
    """The short check: not 0 when a ratio is below its floor, when tokens differ or where nothing can be measured."""
    return run("bench", ["--quick"])
