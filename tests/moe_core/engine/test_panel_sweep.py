"""What is swept out of the folder of panel files, and what stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_core.engine import panel_cache
from moe_core.engine.panel_cache import SUFFIX, PanelCache, sweep, sweep_unfinished
from moe_core.kernels.cpu import panel_file
from moe_core.kernels.cpu.panel_file import PanelWriter

WRITES = """
import sys
from pathlib import Path
from moe_core.kernels.cpu.panel_file import PanelWriter
writer = PanelWriter(Path(sys.argv[1]), "key", shared=True)
assert writer.place("panels", 4096) is not None
print("writes", flush=True)
sys.stdin.read()
"""


def unfinished(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".*{SUFFIX}.*.tmp"))


def test_it_sweeps_what_nobody_used_for_long(tmp_path: Path) -> None:
    day, now = 86_400, time.time()
    for name, days in ((f"a{SUFFIX}", 1), (f"b{SUFFIX}", 15)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now - days * day, now - days * day))
    sweep(tmp_path, keep=tmp_path / f"none{SUFFIX}")
    assert [path.name for path in tmp_path.iterdir()] == [f"a{SUFFIX}"]


def test_a_start_sweeps_what_a_killed_one_left_and_not_what_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / f"a{SUFFIX}"
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writing:
        assert writing.stdout is not None
        assert writing.stdout.readline() == "writes\n"
        (left,) = unfinished(tmp_path)
        # However long it takes, and whatever number its process seems to have from here.
        os.utime(left, (0, 0))
        sweep_unfinished(tmp_path)
        assert unfinished(tmp_path) == [left]
        writing.kill()
    assert unfinished(tmp_path) == [left]
    own = PanelCache(tmp_path / f"b{SUFFIX}", "key", shared=True)
    assert own.writer is not None
    assert [one.name for one in unfinished(tmp_path)] == [f".b{SUFFIX}.{os.getpid()}.tmp"]
    own.give_up()
    assert not unfinished(tmp_path)


def test_who_has_the_number_of_another_writer_leaves_that_ones_file_alone(tmp_path: Path) -> None:
    path = tmp_path / f"a{SUFFIX}"
    first = PanelWriter(path, "key", shared=True)
    assert first.place("panels", 4096) is not None
    with pytest.raises(BlockingIOError):
        PanelWriter(path, "key", shared=True)
    assert first.finish() and path.stat().st_size > 4096


def test_where_there_are_no_locks_an_hour_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(number: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(panel_file.fcntl, "flock", no_locks)
    young, old = tmp_path / f".a{SUFFIX}.7.tmp", tmp_path / f".b{SUFFIX}.8.tmp"
    for left in (young, old):
        left.write_bytes(b"x")
    os.utime(old, (time.time() - panel_cache.STALE_S - 1,) * 2)
    writer = PanelWriter(tmp_path / f"c{SUFFIX}", "key", shared=True)
    sweep_unfinished(tmp_path)
    assert unfinished(tmp_path) == [young, tmp_path / f".c{SUFFIX}.{os.getpid()}.tmp"]
    writer.give_up()


def test_it_sweeps_the_longest_unused_when_the_disk_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in enumerate("abcd"):
        (tmp_path / f"{name}{SUFFIX}").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{name}{SUFFIX}", (time.time() - 100 + place,) * 2)
    monkeypatch.setattr(panel_cache.shutil, "disk_usage", lambda folder: type("U", (), {"total": 1200}))
    sweep(tmp_path, keep=tmp_path / f"a{SUFFIX}")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]
