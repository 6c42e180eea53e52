"""What is made from sources at set-up and never committed: message catalogs and CPU kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from standalone.paths import ROOT
from standalone.processes import IS_LINUX
from standalone.terminal import note, step

KERNEL_BUILDER = ROOT / "moe_core" / "kernels" / "cpu" / "build.py"


def build_all() -> None:
    """Make what is missing or older than its source."""
    compile_catalogs()
    build_kernels()


def compile_catalogs() -> int:
    """Compile each `django.po` whose `.mo` is missing or older; return how many."""
    stale = [
        path
        for path in sorted((ROOT / "platform").glob("*/locale/*/LC_MESSAGES/django.po"))
        if _is_stale(path)
    ]
    if not stale:
        return 0
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    for source in stale:
        with source.open("rb") as file:
            catalog = read_po(file)
        target = source.with_suffix(".mo")
        with target.with_suffix(".tmp").open("wb") as file:
            write_mo(file, catalog)
        target.with_suffix(".tmp").replace(target)
    note(f"Compiled {len(stale)} message catalogs")
    return len(stale)


def _is_stale(source: Path) -> bool:
    """True when the compiled catalog is missing or older than its source."""
    target = source.with_suffix(".mo")
    return not target.exists() or target.stat().st_mtime < source.stat().st_mtime


def build_kernels() -> None:
    """Compile the CPU kernels unless they are there; without a compiler torch does the work."""
    if not KERNEL_BUILDER.exists():
        return
    command = [sys.executable, "-m", "moe_core.kernels.cpu.build"]
    with step("Looking after the CPU kernels"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        note(f"The CPU kernels could not be compiled; torch does their work. {done.stderr.strip()[-500:]}")


def built_kernels() -> list[Path]:
    """Return the compiled libraries of this environment."""
    return sorted((Path(sys.prefix) / "lib" / "turnout").glob("*.so"))


def cpu_flags() -> str:
    """Return the processor's instruction sets as the kernel lists them."""
    if not IS_LINUX:
        return ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return line.partition(":")[2].strip()
    return ""
