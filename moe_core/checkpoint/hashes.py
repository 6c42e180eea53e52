"""sha256 of a model's files: what was written, and whether it still is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import cast

from moe_core.checkpoint.files import open_regular
from moe_core.errors import CheckpointError, HashMismatch


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex, read in pieces."""
    with open_regular(Path(path)) as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()


def hashes_of(directory: Path) -> dict[str, str]:
    """sha256 of every file directly in a model directory, by name, in name order."""
    return {path.name: sha256_of(path) for path in sorted(Path(directory).iterdir()) if path.is_file()}


def verify_hashes(directory: Path, expected: Mapping[str, str]) -> None:
    """Raise HashMismatch for a changed file, CheckpointError for a missing or an unknown one."""
    present = {path.name for path in Path(directory).iterdir()}
    for name in sorted(present ^ set(expected)):
        state = "is missing" if name in expected else "does not belong to the version"
        raise CheckpointError(f"{name}: {state}; import the model anew")
    verify_files(directory, expected)


def verify_files(directory: Path, expected: Mapping[str, str]) -> None:
    """The same for some files of a directory; the others are not looked at."""
    for name, digest in expected.items():
        actual = sha256_of(Path(directory) / name)
        if actual != digest:
            raise HashMismatch(name, digest, actual)
