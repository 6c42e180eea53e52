"""A file's pages as memory: read at once or refused, seen in huge pages where they are, and kept."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from moe_core.kernels.cpu import mapped_pages
from moe_core.kernels.cpu.arena import HUGE_PAGE
from moe_core.kernels.cpu.mapped_pages import fetch, huge_bytes, keep, lies_in_huge_pages, map_file

pytestmark = pytest.mark.skipif(not mapped_pages.SMAPS.exists(), reason="reads what is mapped from /proc")


def mapped(path: Path, data: bytes) -> mmap.mmap:
    path.write_bytes(data)
    with path.open("rb") as file:
        return map_file(file.fileno(), len(data))


def test_what_is_mapped_is_the_file_and_nothing_written_reaches_it(tmp_path: Path) -> None:
    data = os.urandom(3 * mmap.PAGESIZE + 100)
    memory = mapped(tmp_path / "file", data)
    fetch(memory, 4097, 5000)
    fetch(memory, 0, len(data))
    assert memory[:] == data
    memory[5] ^= 1
    assert (tmp_path / "file").read_bytes() == data


def test_an_empty_file_is_mapped_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "file").open("rb") as file:
        assert len(map_file(file.fileno(), 0)) == 1


def test_pages_that_the_file_does_not_have_are_refused_and_end_no_process(tmp_path: Path) -> None:
    memory = mapped(tmp_path / "file", bytes(8 * mmap.PAGESIZE))
    os.truncate(tmp_path / "file", mmap.PAGESIZE)
    fetch(memory, 0, 100)
    with pytest.raises(OSError):
        fetch(memory, 4 * mmap.PAGESIZE, 100)


def test_a_kernel_that_cannot_fetch_leaves_it_to_who_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_pages, "MADV_POPULATE_READ", 9999)
    memory = mapped(tmp_path / "file", b"abc")
    fetch(memory, 0, 3)
    assert memory[:3] == b"abc"


def test_small_files_and_memory_in_small_pages_are_not_taken_for_huge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not lies_in_huge_pages(mapped(tmp_path / "small", bytes(HUGE_PAGE)))
    memory = mapped(tmp_path / "large", bytes(16 * HUGE_PAGE))
    monkeypatch.setattr(mapped_pages, "huge_bytes", lambda memory: 5 * HUGE_PAGE)
    assert not lies_in_huge_pages(memory)
    monkeypatch.setattr(mapped_pages, "huge_bytes", lambda memory: 6 * HUGE_PAGE)
    assert lies_in_huge_pages(memory)


def test_huge_pages_are_told_by_the_kernel_of_this_mapping_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = mapped(tmp_path / "file", b"abc")
    begin = mapped_pages.address_of(memory)
    told = tmp_path / "smaps"
    entry = "{:x}-{:x} r--p 00000000 fe:00 1 /file\nSize: 4 kB\nFilePmdMapped: {} kB\nLocked: 0 kB\n"
    told.write_text(
        entry.format(16, 32, 2048)
        + entry.format(begin, begin + 4096, 4096)
        + entry.format(2**46, 2**47, 6144)
    )
    monkeypatch.setattr(mapped_pages, "SMAPS", told)
    assert huge_bytes(memory) == 4096 << 10
    told.write_text(entry.format(16, 32, 2048))
    assert huge_bytes(memory) == 0


def test_pages_that_are_kept_are_locked_and_not_copied(tmp_path: Path) -> None:
    memory = mapped(tmp_path / "file", bytes(4 * mmap.PAGESIZE))
    fetch(memory, 0, len(memory))
    if not keep(memory):
        pytest.skip("this process may not lock memory")
    begin = f"{mapped_pages.address_of(memory):x}-"
    _, _, told = mapped_pages.SMAPS.read_text().partition(f"\n{begin}")
    facts = dict(line.split(":", 1) for line in told.splitlines()[1:24] if ":" in line)
    assert int(facts["Locked"].split()[0]) >= 16
    assert int(facts["Anonymous"].split()[0]) == 0
