"""`python -m moe_core.kernels.cpu.build`: compile the decode kernels, in seconds.

The system's C++ compiler does it, or the one in the `ziglang` wheel where the system has none.

One library holds the code for several instruction sets and chooses when it is loaded, so it may be moved to another
machine of the same architecture. No headers of torch or Python are needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moe_core.errors import MoeCoreError

SOURCES = Path(__file__).parent / "src"
# No -ffast-math: NaN must stay NaN. Without errno and traps, exp and the rounding in loops can still be vectorised.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    # Vectors of a width that the set lacks are never passed between functions.
    "-Wno-psabi",
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_AVX512_BF16 = (*_AVX512, "-mavx512vnni", "-mavx512bf16")
X86_SETS = {
    "generic": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512_bf16": _AVX512_BF16,
    "amx": (*_AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}
WIDE_VECTORS = ("-mprefer-vector-width=512",)
# Looked for in this order, behind $CXX.
COMPILERS = ("g++", "c++", "clang++")
# Zig compiles for the processor at hand unless told otherwise; the flags of each set add to this plainest one. Its libc++ is
# linked into the library. The glibc is the one that torch's wheels are made for, so whatever loads torch loads this.
ZIG_PROCESSORS = {"x86_64": "x86_64", "aarch64": "generic"}
ZIG_GLIBC = "2.28"


_ended = threading.Event()


class CompilerError(MoeCoreError):
    """The kernels could not be compiled."""


def library_path() -> Path:
    """Where the library for these sources on this architecture lies, whether it is there or not."""
    flags = [
        platform.machine(),
        *FLAGS,
        *WIDE_VECTORS,
        *(f for name, sets in X86_SETS.items() for f in (name, *sets)),
    ]
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return _library_folder() / f"decode-{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compile the library unless it is there; its path.

    Raises:
        CompilerError: without a compiler, or with its complaint.
    """
    target = library_path()
    if target.exists():
        return target
    tool = compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled = (*tool, *FLAGS, "-c")
        commands = [
            [*compiled, *flags, f"-DTURNOUT_ISA={name}", str(SOURCES / "ops.cpp"), "-o", f"{name}.o"]
            for name, flags in instruction_sets().items()
        ]
        named = f'-DTURNOUT_BUILT_WITH="{compiler_name(tool)}"'
        commands.append([*compiled, named, str(SOURCES / "abi.cpp"), "-o", "abi.o"])
        _run_together(commands, folder)
        objects = sorted(path.name for path in Path(folder).glob("*.o"))
        _run_together([[*tool, "-shared", "-pthread", *objects, "-o", "library.so"]], folder)
        # Renamed into place whole: another process may be loading it.
        os.replace(Path(folder) / "library.so", target)
    return target


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The sets that are compiled for this architecture, with their flags."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"generic": ()}
    return {
        name: (*flags, *WIDE_VECTORS) if "-mavx512f" in flags else flags for name, flags in X86_SETS.items()
    }


def compiler() -> tuple[str, ...]:
    """The command of the C++ compiler, to which flags and sources are added.

    $CXX, g++, c++, clang++, whichever is found first; without any, the compiler in the `ziglang` wheel.

    Raises:
        CompilerError: when there is neither.
    """
    for name in (os.environ.get("CXX"), *COMPILERS):
        if name and shutil.which(name):
            return (name,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++", *_zig_target())
    raise CompilerError(
        f"no C++ compiler was found ({', '.join(COMPILERS)} or $CXX): install g++, or the ziglang wheel "
        "that requirements/compiler.in names"
    )


def compiler_name(tool: Sequence[str]) -> str:
    """What people call it, as the library will say it of itself."""
    if "ziglang" in tool:
        return f"ziglang {importlib.metadata.version('ziglang')}"
    return Path(tool[0]).name


def _zig_target() -> tuple[str, ...]:
    """Flags for the plainest processor of this architecture; the system is Zig's choice but on Linux with glibc."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    # Without -g0 the library would be twice as large.
    flags = ("-g0", *((f"-mcpu={ZIG_PROCESSORS[machine]}",) if machine in ZIG_PROCESSORS else ()))
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        return ("-target", f"{machine}-linux-gnu.{ZIG_GLIBC}", *flags)
    return flags


def _run_together(commands: Sequence[Sequence[str]], folder: str) -> None:
    # Zig keeps what it makes of its own libraries: here it goes when the build is done.
    kept = str(Path(folder) / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": kept, "ZIG_LOCAL_CACHE_DIR": kept}

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        if _ended.is_set():
            return subprocess.CompletedProcess(command, 1, stderr="the build was ended")
        return subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    # Each takes half a gigabyte: no more of them than there are processors.
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for done in pool.map(run, commands):
            if done.returncode != 0:
                raise CompilerError(f"{done.args!r}\n{done.stderr.strip()[-2000:]}")


def _library_folder() -> Path:
    in_environment = Path(sys.prefix) / "lib" / "turnout"
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return in_environment
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "turnout"


def _end_with_compilers(*_: object) -> None:
    """Asked to end: no further compiler starts, those that run end too, and what they left goes with its folder."""
    _ended.set()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    # Whoever wants to end it alone has made it the first of a group of its own.
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, _end_with_compilers)
    try:
        sys.stdout.write(f"{build()}\n")
    except CompilerError as error:
        sys.exit(str(error))
