"""Runs a tuning job, kills it with SIGKILL at a failpoint, lets it go on, and tells what came out.

`python -m tests.moe_core.training.killing WORLD FOLDER name@visit …` prints one JSON object: failpoint → how the first
process ended and the hashes of the final files. torch is imported once; every run is a fork of this process, made
before any other thread exists.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# torch's optimisers import it at first use, which takes longer than a run; here it is done before the forks.
import torch._dynamo  # noqa: F401

from moe_core.checkpoint.hashes import hashes_of
from moe_core.failpoints import VARIABLE
from moe_core.training import run_job
from tests.moe_core.training.world import RecordingIO, tune_spec

# Eleven checkpoints: one after each of five stages, six between steps.
SPEC = tune_spec(specialise_steps=3, route_steps=2, num_threads=1, held_out_windows=2)


def in_a_fork(world: Path, folder: Path, failpoint: str) -> int:
    """Run the job in a child of its own; returns its wait status as a return code, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.environ[VARIABLE] = failpoint
    try:
        run_job("tune", SPEC, RecordingIO(world, folder))
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)


def main(world: Path, folder: Path, failpoints: list[str]) -> None:
    """Kill and resume once for each failpoint."""
    told = {}
    for number, place in enumerate(failpoints):
        mine = folder / str(number)
        name, _, visit = place.partition("@")
        first = in_a_fork(world, mine, f"{name}=kill9@{visit}") if name else 0
        second = in_a_fork(world, mine, "")
        left = sorted(path.name for path in mine.iterdir())
        told[place] = {"first": first, "second": second, "hashes": hashes_of(mine / "out"), "left": left}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
