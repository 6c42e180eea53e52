"""Bring a model in: a GGUF file or a Hugging Face directory becomes a model directory, with its inspection."""

from __future__ import annotations

from typing import Any

from moe_core.checkpoint.gguf import describe_gguf, import_gguf
from moe_core.checkpoint.hashes import hashes_of
from moe_core.checkpoint.hf import import_hf
from moe_core.checkpoint.inspect import inspect_dir
from moe_core.checkpoint.store import TORCH_DTYPES, DtypeName, stored_dtype
from moe_core.errors import CheckpointError, SpecError
from moe_core.training.job import JobIO
from moe_core.training.progress import Progress

STAGES = ("read", "convert", "inspect")
SOURCE = "source"


def import_model(io: JobIO, dtype: DtypeName = "bfloat16") -> dict[str, Any]:
    """Import `inputs["source"]` into `out_dir`, its floats as `dtype`; of a directory the log says where that rounds.

    Raises SpecError for another dtype, CheckpointError or FormatError for what is not a model.
    """
    if dtype not in TORCH_DTYPES:
        raise SpecError(
            f"dtype {dtype!r} is none that a model is kept in; there are {', '.join(TORCH_DTYPES)}"
        )
    progress = Progress(io, STAGES)
    source = io.inputs[SOURCE]
    progress.stage("read")
    if not source.exists():
        raise CheckpointError(f"{source.name} does not exist; upload the model again or mend the path")
    facts: dict[str, Any] = {"format": "huggingface"} if source.is_dir() else describe_gguf(source)
    progress.raise_if_asked()
    progress.stage("convert")
    progress.say("converting", name=source.name)
    spec = (import_hf if source.is_dir() else import_gguf)(source, io.out_dir, dtype=dtype)
    if dtype == "bfloat16" and source.is_dir() and stored_dtype(source) == "float32":
        progress.say("rounded_to_16_bits", "warning")
    progress.raise_if_asked()
    progress.stage("inspect")
    inspection = inspect_dir(io.out_dir)
    io.event("report", {"stage": "inspect", "name": "inspection", "figures": inspection})
    return {
        "spec": spec.model_dump(mode="json"),
        "inspection": inspection,
        "lineage": {"source_facts": facts, "files": hashes_of(io.out_dir)},
    }
