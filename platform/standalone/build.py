"""What is made from sources at set-up and never committed: message catalogs and CPU kernels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from standalone.paths import ROOT
from standalone.processes import IS_LINUX, die_with_parent
from standalone.terminal import note

NICENESS = 10
KERNEL_BUILDER = ROOT / "moe_core" / "kernels" / "cpu" / "build.py"


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


class KernelBuild:
    """Compiles the CPU kernels unless they are there, beside other work; without a compiler torch does theirs."""

    def __init__(self) -> None:
        """Begin."""
        self.was_built = bool(built_kernels())
        self.process: subprocess.Popen[str] | None = None
        if KERNEL_BUILDER.exists():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moe_core.kernels.cpu.build"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # short: the compiler's complaint is cut by the builder
                text=True,
                start_new_session=True,
                # Not to be killed at once: it ends its compilers first.
                preexec_fn=partial(_politely, die_with_parent(signal.SIGTERM)),
            )

    def is_done(self) -> bool:
        """True once it has ended; says how it went the first time that it is so."""
        if self.process is None:
            return True
        if self.process.poll() is None:
            return False
        complaint = self.process.communicate()[1]
        if self.process.returncode != 0:
            note(f"The CPU kernels could not be compiled; torch does their work. {complaint.strip()[-500:]}")
        elif not self.was_built:
            note("CPU kernels compiled")
        self.process = None
        return True

    def finish(self) -> None:
        """Wait for the end."""
        if self.process is not None:
            self.process.wait()
        self.is_done()


def _politely(guard: Callable[[], None]) -> None:
    """End with our parent, and let whatever else starts go first: nobody waits for the compiler yet."""
    guard()
    os.nice(NICENESS)


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
