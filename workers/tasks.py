"""The Celery tasks. Arguments are ids; everything else is read from PostgreSQL."""

from __future__ import annotations

from config.celery import app
from jobs.dispatch import TASK
from workers import run_job as runner


@app.task(name=TASK, ignore_result=True)
def run_job(job_id: int) -> None:
    """Look at one job and, when it is ours to take, see it through."""
    runner.run(int(job_id))
