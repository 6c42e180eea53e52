"""Panels of a whole model in one file: written while a model is packed for the first time, mapped ever after.

The file holds sections on page borders, then a footer that names them and says what is so of the model. It is written
under a temporary name, locked until then, and renamed when it is whole and on the disk. The footer is checked before
anything is mapped; the digest of the body stands in it and is checked each time that it is used, beside the rest of a start.

Mapped pages are shared by all processes that serve the model, and packed into by the first. Who serves it alone packs into
huge pages and writes the file from there; later it maps the file too where most of it lies in huge pages of the page cache,
the rest moved to huge pages of its own (small_pages.py), and else reads all of it into such: products read faster from them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_core.kernels.cpu.arena import ARENA, address_of, own_memory
from moe_core.kernels.cpu.mapped_pages import keep, lies_in_huge_pages, map_file
from moe_core.kernels.cpu.panel_footer import Footer, PanelFileError, Section, StoredTensor, read_footer
from moe_core.kernels.cpu.panel_pieces import Pieces, write_joined, write_whole
from moe_core.kernels.cpu.shelf import PAGE_BYTES, Place

logger = logging.getLogger(__name__)


class PanelReader:
    """A panel file, mapped or in memory of this process. Nothing that it holds may be used before `verify` has returned."""

    def __init__(self, path: Path, key: str, *, shared: bool, num_threads: int = 1) -> None:
        """Begin to read on `num_threads` threads.

        Raises PanelFileError for a file that is not whole or is of another key, OSError when it cannot be read.
        """
        self.path = path
        with path.open("rb", buffering=0) as file:
            self._footer, body_bytes = read_footer(file.fileno())
            if self._footer.key != key:
                raise PanelFileError("it is of another model or other kernels")
            self._memory = map_file(file.fileno(), body_bytes)
            self._is_kept = not shared and lies_in_huge_pages(self._memory)
            source = None if shared or self._is_kept else file.fileno()
            if source is not None:
                self._memory = own_memory(body_bytes)
            self._pieces = Pieces(
                self._memory, body_bytes, source, num_threads, own_where_small=self._is_kept
            )
        self._address = address_of(self._memory)
        self._sections = {section.what: section for section in self._footer.sections}
        self._num_asked = 0

    @property
    def tensors(self) -> Sequence[StoredTensor]:
        """The tensors that are not in panels; `bytes_of` finds theirs."""
        return self._footer.tensors

    @property
    def facts(self) -> Mapping[str, bool]:
        """What the writer said of the model beside its tensors."""
        return self._footer.facts

    def place(self, what: str, num_bytes: int) -> Place:
        """The next panels. Raises PanelFileError when the model asks for others than were written."""
        section = self._sections.get(f"{self._num_asked}:{what}")
        self._num_asked += 1
        if section is None or section.bytes != num_bytes:
            raise PanelFileError(f"it has no panels {what} of {num_bytes} bytes")
        return Place(self.bytes_of(section), self._address + section.start, is_filled=True)

    def lies_next(self, what: str, num_bytes: int) -> bool:
        """Whether the next panels are these."""
        section = self._sections.get(f"{self._num_asked}:{what}")
        return section is not None and section.bytes == num_bytes

    def bytes_of(self, part: Section | StoredTensor) -> memoryview:
        """The bytes of a section or tensor."""
        return memoryview(self._memory)[part.start : part.start + part.bytes]

    def verify(self) -> None:
        """Wait for all of it. Raises PanelFileError unless its digest and the number of panels are as written."""
        if self._pieces.digest() != self._footer.digest:
            raise PanelFileError("its panels are damaged")
        if self._num_asked != len(self._sections):
            raise PanelFileError(f"it has {len(self._sections)} panels, the model {self._num_asked}")
        if self._is_kept and not keep(self._memory):
            logger.info("%s is mapped, and may be read anew when memory was short", self.path.name)


def _own_file(path: Path) -> int:
    """A new file that is locked as long as this process writes it. OSError where another one does, under the same number
    on another machine or in another container."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(number)
        if os.fstat(number).st_nlink == 0:
            raise OSError(errno.EBUSY, f"{path.name} was swept as it was begun")
        os.ftruncate(number, 0)
    except BaseException:
        os.close(number)
        raise
    return number


def _lock(number: int) -> bool:
    """Lock a file against other processes; False where its file system knows no locks. OSError where another has it."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def remove_if_left(path: Path, *, stale_s: float) -> bool:
    """Remove a temporary file whose writer is gone: the lock goes with the process, at whatever place it ran. Where there
    are no locks, one that has not been written to for `stale_s` seconds. OSError while somebody writes it."""
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not _lock(number) and time.time() - os.fstat(number).st_mtime <= stale_s:
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(number)
    return True


class PanelWriter:
    """Panels are packed straight into the pages of the new file where they are `shared`, so that the first process shares
    them too; else into memory of the process, from where they are written when there is time."""

    def __init__(self, path: Path, key: str, *, shared: bool) -> None:
        """Raises OSError when the folder cannot be written to."""
        self.path, self._key, self._shared = path, key, shared
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = _own_file(self._temporary)
        self._end = 0
        self._sections: list[Section] = []
        self._tensors: list[StoredTensor] = []
        # What is so of the model beside its tensors, for `PanelReader.facts`.
        self.facts: dict[str, bool] = {}
        self._mapped: list[mmap.mmap] = []
        # Panels in memory of the process, and where they go.
        self._unwritten: list[tuple[memoryview, int]] = []
        self._is_whole = True

    def place(self, what: str, num_bytes: int) -> Place | None:
        """A new section; None when the disk has no room, and then there will be no file."""
        if not self._is_whole:
            return None
        try:
            # Not a hole: a full disk must be met here, and not as a signal in the middle of packing.
            os.posix_fallocate(self._file, self._end, max(num_bytes, 1))
            place = self._mapped_place(num_bytes) if self._shared else self._own_place(num_bytes)
        except OSError as error:
            self._lacks_room(error)
            return None
        name = f"{len(self._sections)}:{what}"
        self._sections.append(Section(what=name, start=self._end, bytes=num_bytes))
        self._end = -(-(self._end + num_bytes) // PAGE_BYTES) * PAGE_BYTES
        return place

    def lies_next(self, what: str, num_bytes: int) -> None:
        """Nothing is there yet."""

    def _mapped_place(self, num_bytes: int) -> Place:
        memory = mmap.mmap(self._file, max(num_bytes, 1), offset=self._end)
        self._mapped.append(memory)
        return Place(memoryview(memory)[:num_bytes], address_of(memory), is_filled=False)

    def _own_place(self, num_bytes: int) -> Place:
        memory, address = ARENA.reserve(num_bytes)
        start = address - address_of(memory)
        self._unwritten.append((memoryview(memory)[start : start + num_bytes], self._end))
        return Place(memory, address, is_filled=False)

    def add_tensor(self, name: str, dtype: str, shape: Sequence[int], data: memoryview) -> None:
        """Keep a tensor that is in no panels; when the disk has no room, there will be no file."""
        if not self._is_whole:
            return
        try:
            write_whole(self._file, data, self._end)
        except OSError as error:
            self._lacks_room(error)
            return
        told = StoredTensor(name=name, dtype=dtype, shape=tuple(shape), start=self._end, bytes=len(data))
        self._tensors.append(told)
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
            write_joined(self._file, self._unwritten)
            os.ftruncate(self._file, self._end)
            write_whole(self._file, memoryview(self._footer().to_bytes()), self._end)
            os.fsync(self._file)
            os.rename(self._temporary, self.path)
        except OSError as error:
            logger.warning("the panel file was not written: %s", error)
            return False
        finally:
            self._unwritten.clear()
            os.close(self._file)
            self.remove_temporary()
        return True

    def give_up(self) -> None:
        """Leave nothing behind; what is mapped stays until its owner lets go."""
        os.close(self._file)
        self.remove_temporary()

    def remove_temporary(self) -> None:
        """Leave no file under its temporary name; a thread that finishes it meanwhile finds that it cannot."""
        self._temporary.unlink(missing_ok=True)

    def _footer(self) -> Footer:
        digest = Pieces(map_file(self._file, self._end), self._end).digest()
        sections, tensors = tuple(self._sections), tuple(self._tensors)
        return Footer(key=self._key, digest=digest, facts=self.facts, sections=sections, tensors=tensors)

    def _protect(self) -> None:
        """What is packed is never changed: a stray write must not reach the file."""
        libc = ctypes.CDLL(None, use_errno=True)
        for memory in self._mapped:
            address, size = ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(len(memory))
            if libc.mprotect(address, size, mmap.PROT_READ):
                raise OSError(ctypes.get_errno(), "mprotect refused to protect the panels")
