"""`./turnout up` as a person meets it: one address, one link, a clean stop, and nothing left after kill -9."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from standalone.instance import running_instance
from standalone.rundir import run_dir_for

ROOT = Path(__file__).resolve().parents[3]
READY = re.compile(r"Turnout runs at (http://127\.0\.0\.1:\d+/)(?:.*: (http://\S+/setup/\S+/))?")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Up:
    """One running `up` in a data folder of its own."""

    def __init__(self, data_dir: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("TURNOUT", "DJANGO"))
        }
        for name in ("DATABASE_URL", "REDIS_URL"):
            environment.pop(name, None)
        environment |= {"TURNOUT_DATA_DIR": str(data_dir), "TURNOUT_PORT": str(port)}
        self.data_dir, self.lines = data_dir, []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "standalone", "up", "--no-demo"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ready(self) -> re.Match[str]:
        """Read lines until the one with the address comes."""
        for line in self.process.stdout:
            self.lines.append(line)
            found = READY.search(line)
            if found:
                return found
        pytest.fail("up ended before it was ready:\n" + "".join(self.lines))

    def members(self) -> list[psutil.Process]:
        """Return every process that works in this data folder, and all that they started."""
        marks = (str(self.data_dir), str(run_dir_for(self.data_dir)))
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), process.environ().get("TURNOUT_DATA_DIR", "")]
                if any(mark in word for word in words for mark in marks):
                    found |= {process, *process.children(recursive=True)}
            except psutil.Error:
                continue
        return [process for process in found if is_alive(process)]

    def members_with(self, *words: str) -> list[psutil.Process]:
        """Return the members once there is one for each of the words."""
        deadline = time.monotonic() + 60
        while True:
            found = self.members()
            names = ""
            for process in found:
                with contextlib.suppress(psutil.Error):
                    names += " ".join(process.cmdline())
            if all(word in names for word in words):
                return found
            assert time.monotonic() < deadline, f"not all of {words} are in {names}"
            time.sleep(0.1)

    def close(self) -> None:
        """Stop it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=90)


def is_alive(process: psutil.Process) -> bool:
    """True for a process that has neither ended nor become a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.fixture
def start(tmp_path):
    started: list[Up] = []

    def begin(data_dir: Path = tmp_path / "data") -> Up:
        started.append(Up(data_dir))
        return started[-1]

    yield begin
    for up in started:
        up.close()


def status_of(address: str) -> int:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.status


def test_it_serves_a_page_and_a_link_for_the_first_admin_then_stops_cleanly_and_starts_again_quickly(start):
    up = start()
    address, link = up.ready().groups()
    assert status_of(address) == 200
    assert status_of(link) == 200
    record = running_instance(up.data_dir)
    assert (record.pid, record.address) == (up.process.pid, address)
    assert len([line for line in up.lines if "http://" in line]) == 1

    up.process.send_signal(signal.SIGINT)
    rest = up.process.communicate(timeout=90)[0]
    assert up.process.returncode == 0, rest
    assert "Stopped; your data is kept." in rest
    assert up.members() == []
    assert running_instance(up.data_dir) is None

    began = time.monotonic()
    again = start()
    address, link = again.ready().groups()
    assert status_of(address) == 200
    assert link is not None, "no admin was made, so the link must be offered again"
    # Five seconds on a quiet machine; tests share it with each other.
    assert time.monotonic() - began < 20


@pytest.mark.faults
def test_killed_with_minus_nine_it_leaves_nothing_running_and_the_next_start_is_clean(start):
    up = start()
    up.ready()
    # The first page does not wait for the worker.
    before = up.members_with("uvicorn", "reconciler", "celery", "valkey-server", "postgres")
    up.process.kill()
    up.process.wait()
    for process in before:
        with contextlib.suppress(psutil.Error):
            process.wait(20)
    assert [process for process in before if is_alive(process)] == []
    assert up.members() == []
    assert status_of(start().ready().group(1)) == 200


@pytest.mark.faults
def test_a_killed_web_process_is_replaced(start):
    up = start()
    address = up.ready().group(1)
    (web,) = [process for process in up.members() if "uvicorn" in process.cmdline()]
    web.kill()
    web.wait(10)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert status_of(address) == 200
            return
        except OSError:
            assert time.monotonic() < deadline, "web did not come back"
            time.sleep(0.1)


def test_a_taken_port_is_refused_with_the_way_out(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {**os.environ, "TURNOUT_DATA_DIR": str(tmp_path), "TURNOUT_PORT": str(port)}
        command = [sys.executable, "-m", "standalone", "up", "--no-demo"]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"TURNOUT_PORT={port + 1} ./turnout up" in run.stderr
