"""What of a mapped file lies in small pages of the page cache is moved to huge ones of the process's own.

The kernel keeps a file in huge pages where it finds such memory free when the file is written or read, and in small ones
elsewhere: a fifth of it and more where much has come and gone. A product waits for each small page, whose prefetches the
processor drops. So they are copied, and the copy takes the place of the file's pages: whoever holds an address keeps it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from moe_core.kernels.cpu.arena import HUGE_PAGE, address_of

PAGEMAP = Path("/proc/self/pagemap")
# Of linux/fs.h, from 6.7 on: _IOWR('f', 16, struct pm_scan_arg), and a category of pages.
PAGEMAP_SCAN, PAGE_IS_HUGE = 0xC0606610, 1 << 6
# Of linux/mman.h.
MREMAP_MAYMOVE, MREMAP_FIXED, MADV_HUGEPAGE = 1, 2, 14
MAX_REGIONS = 64


class _Region(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64))


class _Scan(ctypes.Structure):
    """struct pm_scan_arg."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
            "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
        )
    )  # fmt: skip


def move_to_huge_pages(memory: mmap.mmap, start: int, num_bytes: int) -> int:
    """Move what of these bytes of a private mapping lies in small pages, whole huge pages of it; how many bytes that were.

    They must have been read, and nobody may write to them. Where the kernel does not tell which pages are small, has no
    memory, or has no huge pages either, they stay where they are.
    """
    begin, moved = address_of(memory) + start, 0
    with suppress(OSError):
        for first, end in _small(begin, begin + num_bytes):
            first, end = -(-first // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
            if first < end and _move(first, end - first):
                moved += end - first
    return moved


def _small(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of addresses in pages that are not huge. Raises OSError where the kernel does not know how to tell."""
    regions = (_Region * MAX_REGIONS)()
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        while start < end:
            scan = _Scan(
                size=ctypes.sizeof(_Scan), start=start, end=end, vec=ctypes.addressof(regions), vec_len=MAX_REGIONS,
                category_inverted=PAGE_IS_HUGE, category_mask=PAGE_IS_HUGE, return_mask=PAGE_IS_HUGE,
            )  # fmt: skip
            found = fcntl.ioctl(pagemap, PAGEMAP_SCAN, scan)
            yield from [(region.start, region.end) for region in regions[:found]]
            start = max(scan.walk_end, start + mmap.PAGESIZE)


def _move(place: int, num_bytes: int) -> bool:
    """Put a copy in huge pages where `num_bytes` at `place` lie; False where less than half of it would be in such, and
    nothing has changed. Raises OSError where the kernel has no memory."""
    libc, size = _libc(), num_bytes + HUGE_PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapped = _checked(libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0))
    copy = -(-mapped // HUGE_PAGE) * HUGE_PAGE
    try:
        libc.madvise(copy, num_bytes, MADV_HUGEPAGE)
        ctypes.memmove(copy, place, num_bytes)
        if 2 * sum(end - first for first, end in _small(copy, copy + num_bytes)) > num_bytes:
            libc.munmap(mapped, size)
            return False
        # In one step: a thread that reads finds either the file's page or the copy's.
        _checked(libc.mremap(copy, num_bytes, num_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place))
    except OSError:
        libc.munmap(mapped, size)
        raise
    # What was too much before and behind.
    if copy > mapped:
        libc.munmap(mapped, copy - mapped)
    libc.munmap(copy + num_bytes, mapped + size - copy - num_bytes)
    return True


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address


@cache
def _libc() -> ctypes.CDLL:
    libc, pointer, size = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.argtypes = [pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mremap.argtypes = [pointer, size, size, ctypes.c_int, pointer]
    libc.mmap.restype = libc.mremap.restype = pointer
    libc.madvise.argtypes, libc.munmap.argtypes = [pointer, size, ctypes.c_int], [pointer, size]
    return libc
