"""Hugging Face transformers in bfloat16 with grouped products, behind our front; in float32 also the judge of everybody."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.client import Endpoint
from benchmarks.home import Home
from benchmarks.models import model_dir
from benchmarks.peers.environment import Environment
from benchmarks.peers.server import Server

ENVIRONMENT = Environment("transformers", ("transformers==5.23.0", "torch==2.13.0+cpu", "numpy"))


def servers(home: Home, model: str) -> list[Server]:
    """One; raises Unavailable."""
    return [
        Server(
            name="transformers bf16",
            peer="transformers",
            precision="16 bits",
            command=partial(_command, ENVIRONMENT.python(home), model_dir(model, home.models)),
            endpoint=lambda port: Endpoint("openai", port),
            log=home.logs / "transformers.log",
            note="our front, static batches",
        )
    ]


def _command(python: Path, model: Path, port: int, threads: int) -> list[str]:
    return [str(python), "-m", "benchmarks.fronts.transformers", str(model), str(port), str(threads)]
