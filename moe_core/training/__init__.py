"""Training in a child process: logs in, a tuned model directory out, with progress, checkpoints and exact resume."""

from __future__ import annotations

from moe_core.training.job import JobIO, Paused
from moe_core.training.run import run_job

__all__ = ["JobIO", "Paused", "run_job"]
