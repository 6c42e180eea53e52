"""What lies in small pages of a mapped file is moved to huge ones of the process, byte for byte and where it lay."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from pathlib import Path

import pytest

from moe_core.kernels.cpu import small_pages
from moe_core.kernels.cpu.arena import HUGE_PAGE, address_of, own_memory
from moe_core.kernels.cpu.mapped_pages import fetch, map_file
from moe_core.kernels.cpu.panel_pieces import Pieces
from moe_core.kernels.cpu.small_pages import move_to_huge_pages

SIZE = 7 * HUGE_PAGE + 5 * mmap.PAGESIZE


def skip_without_huge_pages() -> None:
    """Where memory that is asked for in huge pages lies in small ones, there is nothing to move to."""
    probe = own_memory(SIZE)
    probe.write(bytes(SIZE))
    if 2 * small_bytes(probe) > SIZE:
        pytest.skip("this machine gives no huge pages")


def in_small_pages(path: Path) -> tuple[mmap.mmap, bytes]:
    """A mapped file that was written a page at a time, so that the cache holds it so; all of it has been read."""
    skip_without_huge_pages()
    data = random.Random(1).randbytes(SIZE)
    with path.open("wb", buffering=0) as file:
        for start in range(0, SIZE, mmap.PAGESIZE):
            file.write(data[start : start + mmap.PAGESIZE])
    with path.open("rb") as file:
        memory = map_file(file.fileno(), SIZE)
    fetch(memory, 0, SIZE)
    return memory, data


def small_bytes(memory: mmap.mmap) -> int:
    begin = address_of(memory)
    try:
        return sum(end - first for first, end in small_pages._small(begin, begin + SIZE))
    except OSError as error:
        pytest.skip(f"this kernel does not tell which pages are huge: {error}")


def test_they_are_moved_and_nothing_else_is_seen_of_it(tmp_path: Path) -> None:
    memory, data = in_small_pages(tmp_path / "file")
    before = small_bytes(memory)
    assert before >= 5 * HUGE_PAGE
    place = ctypes.c_char.from_address(address_of(memory) + 3 * HUGE_PAGE + 77)
    moved = move_to_huge_pages(memory, 0, SIZE)
    assert moved >= 4 * HUGE_PAGE and moved % HUGE_PAGE == 0
    assert memory[:] == data and place.value == data[3 * HUGE_PAGE + 77 : 3 * HUGE_PAGE + 78]
    # Most of them are huge now; the file has nothing to do with them any more.
    assert small_bytes(memory) <= before - moved // 2
    os.truncate(tmp_path / "file", 0)
    first = -(-address_of(memory) // HUGE_PAGE) * HUGE_PAGE - address_of(memory)
    assert memory[first : first + moved] == data[first : first + moved]


def test_only_what_is_named_is_moved(tmp_path: Path) -> None:
    memory, data = in_small_pages(tmp_path / "file")
    small_bytes(memory)
    assert not move_to_huge_pages(memory, 0, HUGE_PAGE // 2)
    assert move_to_huge_pages(memory, HUGE_PAGE, 2 * HUGE_PAGE) <= 2 * HUGE_PAGE
    assert memory[:] == data


def test_a_kernel_that_does_not_tell_leaves_them_where_they_are(tmp_path: Path, monkeypatch) -> None:
    memory, data = in_small_pages(tmp_path / "file")
    monkeypatch.setattr(small_pages, "PAGEMAP_SCAN", 0xC0606611)
    assert not move_to_huge_pages(memory, 0, SIZE)
    monkeypatch.setattr(small_pages, "PAGEMAP", tmp_path / "none")
    assert not move_to_huge_pages(memory, 0, SIZE) and memory[:] == data


def test_a_kernel_that_has_no_memory_leaves_them_where_they_are(tmp_path: Path, monkeypatch) -> None:
    memory, data = in_small_pages(tmp_path / "file")
    before = small_bytes(memory)
    libc, asked = small_pages._libc(), []

    class Refusing:
        mmap, munmap, madvise = libc.mmap, libc.munmap, libc.madvise

        def mremap(self, *told: int) -> None:
            asked.append(told)
            ctypes.set_errno(12)

    monkeypatch.setattr(small_pages, "_libc", Refusing)
    assert not move_to_huge_pages(memory, 0, SIZE)
    assert asked and memory[:] == data and small_bytes(memory) == before


def test_a_copy_in_small_pages_is_not_worth_its_memory(tmp_path: Path, monkeypatch) -> None:
    memory, data = in_small_pages(tmp_path / "file")
    before = small_bytes(memory)
    # MADV_NOHUGEPAGE: as if none were to be had.
    monkeypatch.setattr(small_pages, "MADV_HUGEPAGE", 15)
    assert not move_to_huge_pages(memory, 0, SIZE)
    assert memory[:] == data and small_bytes(memory) == before
    os.truncate(tmp_path / "file", HUGE_PAGE)
    with pytest.raises(OSError):
        fetch(memory, 2 * HUGE_PAGE, HUGE_PAGE)


@pytest.mark.parametrize("moves", [True, False])
def test_pieces_are_summed_after_they_were_moved(tmp_path: Path, moves: bool) -> None:
    pytest.importorskip("torch")
    memory, data = in_small_pages(tmp_path / "file")
    wanted = Pieces(memory, SIZE).digest()
    before = small_bytes(memory)
    assert Pieces(memory, SIZE, own_where_small=moves).digest() == wanted
    assert memory[:] == data and (small_bytes(memory) < before) is moves
