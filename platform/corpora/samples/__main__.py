"""`python -m corpora.samples OUT_DIR`: write the demo's logs."""

from __future__ import annotations

import sys
from pathlib import Path

from .builder import SampleError, build


def main(arguments: list[str]) -> int:
    """Write the logs and say what was written."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m corpora.samples OUT_DIR\n")
        return 2
    try:
        files = build(Path(arguments[0]))
    except SampleError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for file in files:
        sys.stdout.write(f"{file.path}: {file.num_dialogues} dialogues, {file.num_chars:,} characters\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
