"""The compiler is the system's, or the wheel's where there is none; what it built says so of itself."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from moe_core.kernels.cpu import build
from moe_core.kernels.cpu.native import Library
from moe_core.kernels.cpu.unused_sets import needed_flags

HAS_WHEEL = importlib.util.find_spec("ziglang") is not None


@pytest.fixture
def no_system_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


def _wheel(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    found = ModuleSpec("ziglang", None) if there else None
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: found)


def _program(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_the_systems_compiler_goes_before_the_wheel(
    no_system_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _wheel(monkeypatch, there=True)
    for name in reversed(build.COMPILERS):
        _program(tmp_path, name)
        assert build.compiler() == (name,)
    _program(tmp_path, "mine")
    monkeypatch.setenv("CXX", "mine")
    assert build.compiler() == ("mine",)


@pytest.mark.parametrize(
    ("machine", "libc", "flags"),
    [
        ("x86_64", "glibc", ["-target", "x86_64-linux-gnu.2.28", "-g0", "-mcpu=x86_64"]),
        ("aarch64", "glibc", ["-target", "aarch64-linux-gnu.2.28", "-g0", "-mcpu=generic"]),
        ("x86_64", "", ["-g0", "-mcpu=x86_64"]),
        ("riscv64", "", ["-g0"]),
    ],
)
def test_without_one_the_wheel_compiles_for_the_plainest_processor(
    no_system_compiler: None, monkeypatch: pytest.MonkeyPatch, machine: str, libc: str, flags: list[str]
) -> None:
    """By itself it would compile for the one at hand, and the set for all processors would not run on all."""
    _wheel(monkeypatch, there=True)
    monkeypatch.setattr(build.sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))
    assert list(build.compiler()) == [sys.executable, "-m", "ziglang", "c++", *flags]


def test_without_either_both_ways_out_are_named(
    no_system_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wheel(monkeypatch, there=False)
    with pytest.raises(build.CompilerError, match=r"install g\+\+, or the ziglang wheel"):
        build.compiler()


def test_a_library_says_what_built_it(compiled: Library) -> None:
    name, _, version = compiled.compiler.partition(" (")
    assert name and version.startswith(("GCC ", "Clang ", "Apple ", "Debian ", "Ubuntu ")), compiled.compiler


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of the processor")
def test_a_library_takes_the_best_set_that_the_system_names(compiled: Library) -> None:
    """CPUID asked by the library against the flags that the kernel found."""
    listed = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    )
    before = compiled.isa
    try:
        for isa in build.instruction_sets():
            if isa != "amx":
                assert compiled.use_isa(isa) == (set(needed_flags(isa)) <= set(listed.split())), isa
    finally:
        compiled.use_isa(before)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WHEEL, reason="the ziglang wheel is not installed")
def test_the_wheel_compiles_what_loads_and_takes_the_same_set(
    compiled: Library, no_system_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "_library_folder", lambda: tmp_path / "made")
    made = build.build()
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    library = Library(made)
    assert library.compiler.startswith("ziglang ") and "Clang" in library.compiler
    assert library.isa == compiled.isa
    needed = subprocess.run(
        [sys.executable, "-c", f"import ctypes; print(ctypes.CDLL({str(made)!r}).turnout_abi())"],
        env={"PATH": os.defpath}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(needed.stdout) > 0


def test_a_build_that_is_ended_leaves_no_compiler_and_no_folder(tmp_path: Path) -> None:
    """Compilers that never come to an end; two are there when the build is asked to."""
    if os.name != "posix":
        pytest.skip("signals of a group")
    (tmp_path / "c++").write_text('#!/bin/sh\necho $$ >> "$BEGAN"\nsleep 600\n')
    (tmp_path / "c++").chmod(0o755)
    told = {"CXX": str(tmp_path / "c++"), "XDG_CACHE_HOME": str(tmp_path), "BEGAN": str(tmp_path / "began")}
    code = (
        "import os, runpy, sys; sys.prefix = sys.base_prefix; os.cpu_count = lambda: 2;"
        "runpy.run_module('moe_core.kernels.cpu.build', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **told},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "began").exists() or len((tmp_path / "began").read_text().split()) < 2:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.terminate()
        _, complaint = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and "c++" in complaint
    compilers = [int(number) for number in (tmp_path / "began").read_text().split()]
    assert len(compilers) == 2 and not any(Path(f"/proc/{number}").exists() for number in compilers)
    assert list((tmp_path / "turnout").iterdir()) == []
