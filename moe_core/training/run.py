"""The one door to training: a kind, a specification, surroundings in; a result for the registry out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from moe_core.errors import SpecError
from moe_core.kernels.device import chosen_device
from moe_core.spec import TuneSpec
from moe_core.spec.operate import OperateSpec
from moe_core.training.importing import import_model
from moe_core.training.job import JobIO
from moe_core.training.lanes import Lanes
from moe_core.training.operating import operate
from moe_core.training.tuning import Tuning

KINDS = ("import", "tune", "operate")


def run_job(kind: str, spec: Mapping[str, Any], io: JobIO) -> dict[str, Any]:
    """Do a job; its result has `spec`, `inspection` and `lineage` of the model in `out_dir`, and what was measured.

    Raises Cancelled or Paused when asked to stop, and any MoeCoreError: SpecError, CheckpointError, TrainingError.
    """
    if kind == "import":
        return import_model(io, spec.get("dtype", "bfloat16"))
    if kind == "tune":
        return tune(TuneSpec.parse(spec), io)
    if kind == "operate":
        return operate(OperateSpec.parse(spec), io)
    raise SpecError(f"no job is called {kind!r}; there are: {', '.join(KINDS)}")


def tune(spec: TuneSpec, io: JobIO) -> dict[str, Any]:
    """Tune with deterministic algorithms; as many lanes as the specification has threads, one on a GPU."""
    on_gpu = chosen_device(spec.device).type == "cuda"
    if on_gpu:
        # cuBLAS promises equal bits only with a fixed workspace, and reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(spec.seed)
    with Lanes(1 if on_gpu else spec.num_threads) as lanes:
        return Tuning(spec, io, lanes).run()
