"""What is swept out of the folder of panel files, and what stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from moe_core.engine import panel_cache
from moe_core.engine.panel_cache import SUFFIX, sweep


def test_it_sweeps_what_nobody_used_for_long_and_what_a_dead_process_left(tmp_path: Path) -> None:
    day, now = 86_400, time.time()
    for name, days in (
        (f"a{SUFFIX}", 1),
        (f"b{SUFFIX}", 15),
        (f".c{SUFFIX}.7.tmp", 1),
        (f".d{SUFFIX}.8.tmp", 0),
    ):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now - days * day, now - days * day))
    sweep(tmp_path, keep=tmp_path / f"none{SUFFIX}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".d{SUFFIX}.8.tmp", f"a{SUFFIX}"]


def test_it_sweeps_the_longest_unused_when_the_disk_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in enumerate("abcd"):
        (tmp_path / f"{name}{SUFFIX}").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{name}{SUFFIX}", (time.time() - 100 + place,) * 2)
    monkeypatch.setattr(panel_cache.shutil, "disk_usage", lambda folder: type("U", (), {"total": 1200}))
    sweep(tmp_path, keep=tmp_path / f"a{SUFFIX}")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]
