"""A run takes as many threads as it may run on processors, not as many as the machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.processors import usable_processors
from jobs.specs import default_threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor can be taken away here")
def test_a_process_that_may_use_one_of_them_has_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from common.processors import usable_processors; print(usable_processors())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "1"


def test_a_run_takes_no_more_threads_than_it_may_use() -> None:
    assert 1 <= default_threads() <= usable_processors()
