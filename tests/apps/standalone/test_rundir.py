"""Run folders: short enough for sockets, private, and swept when their owner has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from standalone import rundir
from standalone.errors import StandaloneError

LONGEST_SOCKET_NAME = "/.s.PGSQL.5432.lock"


@pytest.fixture
def short_root(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "short_temp_root", lambda: tmp_path)
    monkeypatch.setattr(rundir, "MAX_RUN_DIR_BYTES", max(57, len(os.fsencode(tmp_path)) + 20))
    return tmp_path


def test_a_long_temp_folder_is_not_used_for_sockets(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 80)
    monkeypatch.setattr(rundir.tempfile, "gettempdir", lambda: str(long))
    assert str(rundir.short_temp_root()) == "/tmp"
    assert len(f"/tmp/turnout-t-12345678{LONGEST_SOCKET_NAME}") < 108


def test_one_data_folder_always_gets_the_same_private_run_folder(short_root, tmp_path):
    first, again = rundir.run_dir_for(tmp_path / "a"), rundir.run_dir_for(tmp_path / "a")
    other = rundir.run_dir_for(tmp_path / "b")
    assert first == again != other
    assert first.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_closed(short_root, tmp_path):
    path = rundir.run_dir_for(tmp_path / "a")
    path.chmod(0o755)
    assert rundir.run_dir_for(tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_chosen_run_folder_is_used_unless_sockets_would_not_fit(short_root, tmp_path):
    assert rundir.run_dir_for(tmp_path, "/tmp/turnout-chosen").name == "turnout-chosen"
    rundir.Path("/tmp/turnout-chosen").rmdir()
    with pytest.raises(StandaloneError, match=r"TURNOUT_RUN_DIR=/x+ is too long"):
        rundir.run_dir_for(tmp_path, "/" + "x" * 200)


def test_it_refuses_a_symlink_in_place_of_the_run_folder(short_root, tmp_path):
    path = rundir.run_dir_for(tmp_path / "a")
    path.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path.symlink_to(elsewhere)
    with pytest.raises(StandaloneError, match="belongs to somebody else"):
        rundir.run_dir_for(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_it_refuses_a_folder_of_another_user(short_root, tmp_path):
    path = rundir.run_dir_for(tmp_path / "a")
    os.chown(path, 65534, 65534)
    with pytest.raises(StandaloneError, match="uid 65534"):
        rundir.run_dir_for(tmp_path / "a")


def test_a_throwaway_folder_in_use_is_never_swept(short_root):
    path, lock = rundir.throwaway_dir()
    rundir.sweep_abandoned(short_root)
    assert path.exists()
    lock.close()
    rundir.sweep_abandoned(short_root)
    assert not path.exists()


def test_the_folder_of_a_killed_owner_is_swept(short_root):
    script = (
        "import sys, pathlib; from standalone import rundir\n"
        f"rundir.short_temp_root = lambda: pathlib.Path({str(short_root)!r})\n"
        "path, lock = rundir.throwaway_dir(); print(path, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    path = rundir.Path(owner.stdout.readline().strip())
    rundir.sweep_abandoned(short_root)
    assert path.exists()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    rundir.sweep_abandoned(short_root)
    assert not path.exists()
