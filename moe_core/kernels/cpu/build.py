"""`python -m moe_core.kernels.cpu.build`: compile the decode kernels with the system's C++ compiler, in seconds.

One library holds the code for several instruction sets and chooses when it is loaded, so it may be moved to another
machine of the same architecture. No headers of torch or Python are needed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
        commands = [
            [
                tool,
                *FLAGS,
                *flags,
                f"-DTURNOUT_ISA={name}",
                "-c",
                str(SOURCES / "ops.cpp"),
                "-o",
                f"{name}.o",
            ]
            for name, flags in instruction_sets().items()
        ]
        commands.append([tool, *FLAGS, "-c", str(SOURCES / "abi.cpp"), "-o", "abi.o"])
        _run_together(commands, folder)
        objects = sorted(path.name for path in Path(folder).glob("*.o"))
        _run_together([[tool, "-shared", "-pthread", *objects, "-o", "library.so"]], folder)
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


def compiler() -> str:
    """The C++ compiler; raises CompilerError when there is none."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and shutil.which(name):
            return name
    raise CompilerError("no C++ compiler was found (g++, c++, clang++ or $CXX): install g++")


def _run_together(commands: Sequence[Sequence[str]], folder: str) -> None:
    running: list[subprocess.Popen[str]] = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    complaints = [process.communicate()[1] for process in running]
    for process, complaint in zip(running, complaints, strict=True):
        if process.returncode != 0:
            raise CompilerError(f"{process.args!r}\n{complaint.strip()[-2000:]}")


def _library_folder() -> Path:
    in_environment = Path(sys.prefix) / "lib" / "turnout"
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return in_environment
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "turnout"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except CompilerError as error:
        sys.exit(str(error))
