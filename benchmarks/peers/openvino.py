"""OpenVINO GenAI: models exported by optimum-intel, its pipeline with continuous batching behind our front."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.client import Endpoint
from benchmarks.home import Home
from benchmarks.models import model_dir
from benchmarks.peers.environment import Environment, Unavailable, call
from benchmarks.peers.server import Server

ENVIRONMENT = Environment(
    "openvino",
    (
        "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0",
        "transformers==5.5.4", "torch==2.13.0+cpu",
    ),
    ("torchvision",),
)  # fmt: skip
# Groups of 64, for the usual 128 do not divide a width of 576.
FORMATS = {
    "16 bits": ("fp16", ()),
    "8 bits": ("int8", ()),
    "4 bits": ("int4", ("--group-size", "64", "--ratio", "1.0", "--sym")),
}
EXPORT = "from optimum.commands.optimum_cli import main; main()"


def servers(home: Home, model: str) -> list[Server]:
    """One for each format that can be exported; raises Unavailable when none can."""
    python, found, reasons = ENVIRONMENT.python(home), [], []
    for precision, (kind, options) in FORMATS.items():
        try:
            exported = _exported(home, python, model, kind, options)
        except Unavailable as error:
            reasons.append(f"{kind}: {error}")
            continue
        found.append(
            Server(
                name=f"OpenVINO {kind}",
                peer="OpenVINO",
                precision=precision,
                command=partial(_command, python, exported),
                endpoint=lambda port: Endpoint("openai", port),
                log=home.logs / f"openvino-{kind}.log",
                note="our front over ContinuousBatchingPipeline" + "".join(f"; {r}" for r in reasons),
            )
        )
    if not found:
        raise Unavailable("; ".join(reasons))
    return found


def _command(python: Path, exported: Path, port: int, threads: int) -> list[str]:
    return [str(python), "-m", "benchmarks.fronts.openvino", str(exported), str(port), str(threads)]


def _exported(home: Home, python: Path, model: str, kind: str, options: tuple[str, ...]) -> Path:
    path = home.exports / f"{model}-openvino-{kind}"
    if not path.exists():
        unfinished = path.with_suffix(".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [str(python), "-c", EXPORT, "export", "openvino", "--task", "text-generation-with-past"]
        command += ["-m", str(model_dir(model, home.models)), "--weight-format", kind, *options]
        log = home.logs / f"export-openvino-{kind}.log"
        log.unlink(missing_ok=True)
        call([*command, str(unfinished)], log, HF_HUB_OFFLINE="1")
        unfinished.rename(path)
    return path
