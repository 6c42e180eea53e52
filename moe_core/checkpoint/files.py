"""Reading files that strangers made: regular files only, bounded, every error a CheckpointError."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from moe_core import strict_json
from moe_core.errors import CheckpointError, FormatError

MAX_JSON_BYTES = 64 * 1024 * 1024


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; a device, a pipe or (when told) a symbolic link is refused."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be opened ({error.strerror}); {_hint(path)}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path.name}: is not a regular file; copy the real file there")
    return os.fdopen(fd, "rb")


def _hint(path: Path) -> str:
    return "copy the file instead of linking it" if path.is_symlink() else "is the directory complete?"


def file_size(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_exactly(file: BinaryIO, offset: int, into: memoryview) -> None:
    """Fill a buffer from an offset; FormatError when the file ends before it is full."""
    done = 0
    while done < len(into):
        # preadv moves no file position, so readers may share one file.
        count = os.preadv(file.fileno(), [into[done:]], offset + done)
        if count == 0:
            raise FormatError(f"the file ends {len(into) - done} bytes early at offset {offset + done}")
        done += count


def read_bytes(path: Path, max_bytes: int, *, follow_links: bool = True) -> bytes:
    """The whole of a small file."""
    with open_regular(path, follow_links=follow_links) as file:
        size = file_size(file)
        if size > max_bytes:
            raise FormatError(f"{path.name}: has {size} bytes; at most {max_bytes} are read")
        return file.read(max_bytes)


def read_json_object(
    path: Path, max_bytes: int = MAX_JSON_BYTES, *, follow_links: bool = True
) -> dict[str, Any]:
    """A JSON object from a file, parsed strictly: no repeated keys, no NaN, no deep nesting."""
    return parse_json_object(read_bytes(path, max_bytes, follow_links=follow_links), path.name, max_bytes)


def parse_json_object(raw: bytes, name: str, max_bytes: int) -> dict[str, Any]:
    """A JSON object from bytes; FormatError that names the file otherwise."""
    try:
        value = strict_json.loads(raw, max_bytes=max_bytes)
    except strict_json.StrictJsonError as error:
        raise FormatError(f"{name}: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{name}: holds a {type(value).__name__}, not an object")
    return value
