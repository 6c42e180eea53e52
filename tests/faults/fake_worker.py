"""A real worker whose jobs run the small program of tests/workers/jobs: `celery -A tests.faults.fake_worker worker`."""

from __future__ import annotations

import sys
from pathlib import Path

from workers.app import app  # isort: skip  (sets Django up before anything below is imported)

from workers import relay, runtime

runtime.CHILD = (sys.executable, str(Path(__file__).parents[1] / "workers" / "jobs" / "fake_child.py"))
relay.FRAME_EVERY_S = 0.0

__all__ = ["app"]
