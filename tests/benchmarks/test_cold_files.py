"""A cold start is cold: files that were dropped are in no page of memory, and one that stays is refused."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from benchmarks.engine import residency


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experts-0.safetensors"
    path.write_bytes(os.urandom(4 << 20))
    with path.open("rb") as written:
        os.fsync(written.fileno())
        written.read()
    return path


def cached(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY)
    try:
        return residency.cached_bytes(handle)
    finally:
        os.close(handle)


def test_dropped_files_are_in_no_page(file: Path) -> None:
    if cached(file) < 4 << 20:
        pytest.skip("this filesystem keeps no pages")
    residency.drop_from_page_cache(file.parent)
    assert cached(file) == 0


def test_a_file_that_stays_in_memory_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "MOST_LEFT_BYTES", 1 << 20)
    with file.open("r+b") as held, mmap.mmap(held.fileno(), 0) as memory:
        # Mapped and read: the kernel does not drop such pages.
        assert sum(memory[place] for place in range(0, len(memory), mmap.PAGESIZE)) >= 0
        with pytest.raises(RuntimeError, match="stay in the page cache"):
            residency.drop_from_page_cache(file.parent)
