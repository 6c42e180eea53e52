"""llama.cpp from the source that the sdist of llama_cpp_python carries: its own server, its own quantised formats."""

from __future__ import annotations

import os
import subprocess
import tarfile
from functools import partial
from pathlib import Path

from benchmarks.client import Endpoint
from benchmarks.home import Home
from benchmarks.models import model_dir
from benchmarks.peers.environment import Environment, Unavailable, call
from benchmarks.peers.server import Server

SDIST = "llama_cpp_python==0.3.36"
CONVERTER = Environment(
    "llamacpp-convert",
    ("torch==2.13.0+cpu", "transformers==5.5.4", "numpy", "sentencepiece", "protobuf", "pyyaml", "tqdm"),
)
# What fetches the source: uv installs, but downloads nothing, and an environment that it made has no pip of its own.
FETCHER = Environment("llamacpp-fetch", ("pip",))
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF",
)  # fmt: skip
TARGETS = ("llama-server", "llama-quantize")
FORMATS = {"16 bits": "bf16", "8 bits": "Q8_0", "4 bits": "Q4_0"}
# gcc 12 does not know that the instruction reads memory, and drops the stores of what it is to read: with AMX the quantised
# models end the server while they are loaded.
LOADS_TILES, TILES_FILE = "    _tile_loadconfig(&tc);", "ggml/src/ggml-cpu/amx/mmq.cpp"
BARRIER = '    asm volatile("" : : "r"(&tc) : "memory");\n'
SLOTS, CONTEXT = 16, 16 * 1024
# Its guesses from what an answer repeats: the quickest here of its kinds and lengths (`docs/explanation/lab-log.md`).
GUESSES = (
    "--spec-type",
    "ngram-simple",
    "--spec-ngram-simple-size-n",
    "3",
    "--spec-ngram-simple-size-m",
    "4",
)


def servers(home: Home, model: str, options: tuple[str, ...] = ()) -> list[Server]:
    """One for each format, with these options besides.

    Raises:
        Unavailable: when it cannot be compiled, or does not read the model.
    """
    tools = _compiled(home)
    return [
        Server(
            name=f"llama.cpp {kind}",
            peer="llama.cpp",
            precision=precision,
            command=partial(_command, tools["llama-server"], _gguf(home, tools, model, kind), options),
            endpoint=lambda port: Endpoint("llama", port),
            log=home.logs / f"llamacpp-{kind}.log",
        )
        for precision, kind in FORMATS.items()
    ]


def _command(server: Path, gguf: Path, options: tuple[str, ...], port: int, threads: int) -> list[str]:
    return [
        str(server), "-m", str(gguf), "-t", str(threads), "-tb", str(threads), "-c", str(CONTEXT), "-np", str(SLOTS),
        "-b", "2048", "-ub", "512", "--host", "127.0.0.1", "--port", str(port), "--cache-ram", "0", *options,
    ]  # fmt: skip


def _source(home: Home) -> Path:
    folder, log = home.folder("llamacpp"), home.logs / "install-llamacpp.log"
    found = sorted(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    if not found:
        command = [
            str(FETCHER.python(home)),
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            "llama_cpp_python",
        ]
        call([*command, "-d", str(folder), SDIST], log)
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        found = sorted(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    _keep_tile_stores(found[0] / TILES_FILE)
    return found[0]


def _keep_tile_stores(path: Path) -> None:
    """Put the barrier that gcc needs before a tile configuration is loaded, where it is not yet."""
    text = path.read_text()
    if BARRIER not in text:
        path.write_text(text.replace(LOADS_TILES, BARRIER + LOADS_TILES))


def _compiled(home: Home) -> dict[str, Path]:
    build = home.folder("llamacpp") / "build"
    tools = {name: build / "bin" / name for name in TARGETS}
    source = _source(home)
    if not all(path.exists() for path in tools.values()):
        log = home.logs / "install-llamacpp.log"
        call(["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *OPTIONS], log)
        jobs = str(os.cpu_count() or 1)
        call(["cmake", "--build", str(build), "-j", jobs, "--target", *TARGETS], log)
    return tools


def _gguf(home: Home, tools: dict[str, Path], model: str, kind: str) -> Path:
    path = home.exports / f"{model}-{kind}.gguf"
    if path.exists():
        return path
    log = home.logs / "install-llamacpp.log"
    partial_path = path.with_suffix(".partial")
    if kind == "bf16":
        source = _source(home)
        call(
            [
                str(CONVERTER.python(home)), str(source / "convert_hf_to_gguf.py"), str(model_dir(model, home.models)),
                "--outtype", "bf16", "--outfile", str(partial_path),
            ],
            log, PYTHONPATH=str(source / "gguf-py"),
        )  # fmt: skip
    else:
        call(
            [str(tools["llama-quantize"]), str(_gguf(home, tools, model, "bf16")), str(partial_path), kind],
            log,
        )
    if not partial_path.exists():
        raise Unavailable(f"no {path.name} was written; see {log}")
    return partial_path.rename(path)


def version(home: Home) -> str:
    """What it says of itself."""
    tool = home.folder("llamacpp") / "build" / "bin" / "llama-server"
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stderr
    return next((line for line in said.splitlines() if line.startswith("version")), SDIST)
