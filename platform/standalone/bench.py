"""`./turnout bench`: the benchmarks of this checkout, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from standalone.build import KernelBuild
from standalone.errors import StandaloneError
from standalone.paths import ROOT
from standalone.terminal import say

# The first is what runs without a name.
BENCHMARKS = {
    "compare": (
        "benchmarks.compare",
        "against transformers and the machine's limits; --quick checks the floors",
    ),
    "training": ("benchmarks.training", "a training step against transformers: whole, gates only, from scratch"),
    "speed": ("benchmarks.engine.speed", "tokens a second of given model directories, kernels and threads"),
}


def run(_name: str, arguments: list[str]) -> int:
    """Run one benchmark by name (default: the comparison), or list them."""
    name, rest = (
        ("compare", arguments)
        if not arguments or arguments[0].startswith("-")
        else (arguments[0], arguments[1:])
    )
    if name == "list":
        say("\n".join(f"  {known:<10}{what}" for known, (_, what) in BENCHMARKS.items()))
        return 0
    if name not in BENCHMARKS:
        raise StandaloneError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    KernelBuild().finish()
    module, _ = BENCHMARKS[name]
    return subprocess.run([sys.executable, "-m", module, *rest], cwd=ROOT, check=False).returncode


def quick() -> int:
    """The two-minute check: 1 when a ratio to transformers is below its floor, or when tokens differ."""
    return run("bench", ["--quick"])
