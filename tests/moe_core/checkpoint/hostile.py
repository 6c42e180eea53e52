"""Runs a reader on hostile bytes in a child with little memory: it must accept or refuse, never crash or swell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHILD = """
import json, resource, sys, tempfile, os
from moe_core.errors import CheckpointError
from moe_core.checkpoint.{module} import {function} as read

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

start, verdicts = peak_mb(), []
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            read(file, os.path.basename(path))
        verdicts.append("accepted")
    except CheckpointError as error:
        verdicts.append(str(error))
print(json.dumps({{"verdicts": verdicts, "grown_mb": peak_mb() - start}}))
"""


def verdicts_of(module: str, function: str, files: list[Path]) -> tuple[list[str], int]:
    """For each file "accepted" or the sentence of the refusal; and by how many MB the child's peak memory grew."""
    code = CHILD.format(module=module, function=function)
    command = [sys.executable, "-c", code, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return answer["verdicts"], answer["grown_mb"]
