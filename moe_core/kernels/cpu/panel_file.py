"""Panels of a whole model in one file: written while a model is packed for the first time, mapped ever after.

The file holds sections on page borders, then a footer: JSON that names them, its length, and a mark. It is written under
a temporary name and renamed when it is whole and on the disk. Its sha256 stands in the footer and is checked each time
that it is used, beside the rest of a start. Mapped pages are shared by all processes that serve the model.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_core.errors import MoeCoreError
from moe_core.kernels.cpu.arena import address_of
from moe_core.kernels.cpu.shelf import PAGE_BYTES, Place

logger = logging.getLogger(__name__)
MARK = b"TURNOUT1"
TAIL_BYTES = len(MARK) + 8
MAX_FOOTER_BYTES = 64 << 20
HASHED_AT_ONCE = 16 << 20


class PanelFileError(MoeCoreError):
    """A panel file that cannot be used; the model is packed anew."""


class PanelReader:
    """A panel file, mapped. Nothing that it holds may be used in earnest before `verify` has returned."""

    def __init__(self, path: Path, key: str) -> None:
        """Raises PanelFileError for a file that is not whole or is of another key, OSError when it cannot be read."""
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < TAIL_BYTES:
                raise PanelFileError(f"{path.name} is too short")
            # Private, and never written: ctypes asks for memory that could be.
            self._memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        self._footer, self._body_bytes = self._read_footer(size)
        if self._footer["key"] != key:
            raise PanelFileError(f"{path.name} is of another model or other kernels")
        self._address = address_of(self._memory)
        self._sections = {section["what"]: section for section in self._footer["sections"]}
        self._num_asked = 0
        self._sha256 = ""
        self._hashing = threading.Thread(target=self._hash, name="panel-hash", daemon=True)
        self._hashing.start()

    @property
    def tensors(self) -> list[dict[str, Any]]:
        """The tensors that are not in panels: name, dtype, shape, and where `bytes_of` finds them."""
        tensors: list[dict[str, Any]] = self._footer["tensors"]
        return tensors

    def place(self, what: str, num_bytes: int) -> Place:
        """The next panels. Raises PanelFileError when the model asks for others than were written."""
        section = self._sections.get(f"{self._num_asked}:{what}")
        self._num_asked += 1
        if section is None or section["bytes"] != num_bytes:
            raise PanelFileError(f"{self.path.name} has no panels {what} of {num_bytes} bytes")
        return Place(self.bytes_of(section), self._address + section["start"], is_filled=True)

    def bytes_of(self, section: dict[str, Any]) -> memoryview:
        """The bytes of a section or tensor."""
        return memoryview(self._memory)[section["start"] : section["start"] + section["bytes"]]

    def let_go(self) -> None:
        """Give the pages back that this process has mapped; those that are read again come from the file again."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Wait for the hash of the contents. Raises PanelFileError unless it and the number of panels are as written."""
        self._hashing.join()
        if self._sha256 != self._footer["sha256"]:
            raise PanelFileError(f"{self.path.name} is damaged")
        if self._num_asked != len(self._sections):
            raise PanelFileError(
                f"{self.path.name} has {len(self._sections)} panels, the model {self._num_asked}"
            )

    def _read_footer(self, size: int) -> tuple[dict[str, Any], int]:
        tail = self._memory[size - TAIL_BYTES :]
        length = int.from_bytes(tail[:8], "little")
        body_bytes = size - TAIL_BYTES - length
        if tail[8:] != MARK or length > MAX_FOOTER_BYTES or body_bytes < 0:
            raise PanelFileError(f"{self.path.name} has no footer")
        try:
            footer: dict[str, Any] = json.loads(self._memory[body_bytes : body_bytes + length])
            parts = [*footer["sections"], *footer["tensors"]]
            fits = all(0 <= one["start"] <= one["start"] + one["bytes"] <= body_bytes for one in parts)
            if not fits or not isinstance(footer["sha256"], str) or not isinstance(footer["key"], str):
                raise PanelFileError(f"{self.path.name} names what lies outside of it")
        except (ValueError, KeyError, TypeError) as error:
            raise PanelFileError(f"{self.path.name} has a footer that cannot be read") from error
        return footer, body_bytes

    def _hash(self) -> None:
        self._sha256 = _sha256(memoryview(self._memory)[: self._body_bytes])


class PanelWriter:
    """Panels are packed straight into the pages of the new file, so that the first process shares them too."""

    def __init__(self, path: Path, key: str) -> None:
        """Raises OSError when the folder cannot be written to."""
        self.path, self._key = path, key
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._sections: list[dict[str, Any]] = []
        self._tensors: list[dict[str, Any]] = []
        self._mapped: list[mmap.mmap] = []
        self._is_whole = True

    def place(self, what: str, num_bytes: int) -> Place | None:
        """A new section; None when the disk has no room, and then there will be no file."""
        if not self._is_whole:
            return None
        try:
            # Not a hole: a full disk must be met here, and not as a signal in the middle of packing.
            os.posix_fallocate(self._file, self._end, max(num_bytes, 1))
            memory = mmap.mmap(self._file, max(num_bytes, 1), offset=self._end)
        except OSError as error:
            self._lacks_room(error)
            return None
        self._sections.append(
            {"what": f"{len(self._sections)}:{what}", "start": self._end, "bytes": num_bytes}
        )
        self._mapped.append(memory)
        self._end = -(-(self._end + num_bytes) // PAGE_BYTES) * PAGE_BYTES
        return Place(memoryview(memory)[:num_bytes], address_of(memory), is_filled=False)

    def add_tensor(self, name: str, dtype: str, shape: Sequence[int], data: memoryview) -> None:
        """Keep a tensor that is in no panels; when the disk has no room, there will be no file."""
        if not self._is_whole:
            return
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
        except OSError as error:
            self._lacks_room(error)
            return
        place = {"start": self._end, "bytes": len(data)}
        self._tensors.append({"name": name, "dtype": dtype, "shape": list(shape), **place})
        self._end = -(-(self._end + len(data)) // PAGE_BYTES) * PAGE_BYTES

    def _lacks_room(self, error: OSError) -> None:
        logger.warning("no panel file is written: %s", error)
        self._is_whole = False

    def finish(self) -> bool:
        """Hash, write the footer, flush and rename; False, and nothing is left, when it cannot be."""
        try:
            if not self._is_whole:
                return False
            self._protect()
            os.ftruncate(self._file, self._end)
            with mmap.mmap(self._file, max(self._end, 1), access=mmap.ACCESS_READ) as whole:
                digest = _sha256(memoryview(whole)[: self._end])
            os.pwrite(self._file, self._footer(digest), self._end)
            os.fsync(self._file)
            os.rename(self._temporary, self.path)
        except OSError as error:
            logger.warning("the panel file was not written: %s", error)
            return False
        finally:
            os.close(self._file)
            self._temporary.unlink(missing_ok=True)
        return True

    def give_up(self) -> None:
        """Leave nothing behind; what is mapped stays until its owner lets go."""
        os.close(self._file)
        self._temporary.unlink(missing_ok=True)

    def _footer(self, digest: str) -> bytes:
        value = {"key": self._key, "sha256": digest, "sections": self._sections, "tensors": self._tensors}
        footer = json.dumps(value, separators=(",", ":")).encode()
        return footer + len(footer).to_bytes(8, "little") + MARK

    def let_go(self) -> None:
        """Give back the pages of panels that have moved; they are the file's."""
        for memory in self._mapped:
            memory.madvise(mmap.MADV_DONTNEED)

    def _protect(self) -> None:
        """What is packed is never changed: a stray write must not reach the file."""
        libc = ctypes.CDLL(None, use_errno=True)
        for memory in self._mapped:
            address, size = ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(len(memory))
            if libc.mprotect(address, size, mmap.PROT_READ):
                raise OSError(ctypes.get_errno(), "mprotect refused to protect the panels")


def _sha256(data: memoryview) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(data), HASHED_AT_ONCE):
        digest.update(data[start : start + HASHED_AT_ONCE])
    return digest.hexdigest()
