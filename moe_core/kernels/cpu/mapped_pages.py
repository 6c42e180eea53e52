"""A file's pages as memory of a process: huge where the page cache holds the file so, read at once, and kept.

What lies in huge pages of the page cache is multiplied from there as fast as from huge pages of the process's own, and
nothing has to be copied when a process starts. Linux holds files so on ext4 from 6.16 on, on xfs and btrfs before; elsewhere
pages are small, and who wants huge ones copies.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from moe_core.kernels.cpu.arena import HUGE_PAGE, address_of

# Of linux/mman.h and linux/mlock2.
MADV_POPULATE_READ, MLOCK_ONFAULT = 22, 1
# A file is taken to lie as so many places in it do, all but one in four of them.
NUM_PROBES, HUGE_SHARE = 8, 0.75
SMAPS = Path("/proc/self/smaps")


def map_file(file: int, num_bytes: int) -> mmap.mmap:
    """The first `num_bytes` of an open file, private and never written to: ctypes asks for memory that could be."""
    memory = mmap.mmap(file, max(num_bytes, 1), access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Refused where the kernel knows no huge pages.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def fetch(memory: mmap.mmap, start: int, num_bytes: int) -> None:
    """Have these bytes of a mapped file in memory. Raises OSError where they cannot be read, which would end a process that
    touches them."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    place, size = ctypes.c_void_p(address_of(memory) + first), ctypes.c_size_t(start + num_bytes - first)
    # A kernel before 5.14 does not know it, and reads what is touched.
    if _libc().madvise(place, size, MADV_POPULATE_READ) and (code := ctypes.get_errno()) != errno.EINVAL:
        raise OSError(code, os.strerror(code))


def lies_in_huge_pages(memory: mmap.mmap) -> bool:
    """Whether a mapped file does, by a few places in it; those are read. Raises OSError where they cannot be."""
    base, step = address_of(memory), len(memory) // NUM_PROBES
    if step < 2 * HUGE_PAGE or not SMAPS.exists():
        return False
    for start in range(0, NUM_PROBES * step, step):
        fetch(memory, -(-(base + start) // HUGE_PAGE) * HUGE_PAGE - base, HUGE_PAGE)
    return huge_bytes(memory) >= HUGE_SHARE * NUM_PROBES * HUGE_PAGE


def huge_bytes(memory: mmap.mmap) -> int:
    """How much of a mapped file this process sees in huge pages; 0 where the kernel does not tell."""
    begin = f"{address_of(memory):x}-".encode()
    with SMAPS.open("rb") as lines:
        for line in lines:
            if line.startswith(begin):
                break
        for line in lines:
            if line.startswith(b"FilePmdMapped:"):
                return int(line.split()[1]) << 10
    return 0


def keep(memory: mmap.mmap) -> bool:
    """Let the kernel not take back what is read of a mapped file when memory is short; False where this process may not."""
    lock = getattr(_libc(), "mlock2", None)
    # Without "on fault" a private mapping that may be written would be copied.
    return lock is not None and not lock(
        ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(len(memory)), MLOCK_ONFAULT
    )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
