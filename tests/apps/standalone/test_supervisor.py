"""The supervisor restarts what crashes, waits longer each time, and takes every descendant with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from standalone import supervisor as module
from standalone.supervisor import Program, Supervisor, describe_exit
from tests.policies import may_choose_batch


def program(tmp_path, script: str, name: str = "child", **facts) -> Program:
    return Program(
        name, [sys.executable, "-u", "-c", script], dict(os.environ), tmp_path / f"{name}.log", **facts
    )


def wait_for(condition, patience_s: float = 20.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


FOREVER = "import signal; print('ready'); signal.pause()"


def test_a_crashed_program_is_started_again_after_a_growing_pause(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    child = program(tmp_path, "print('ran'); raise SystemExit(3)", pause_s=0.01)
    child.start()
    wait_for(lambda: child.look() or child.restarts >= 3)
    child.stop()
    assert child.log_path.read_text().count("ran") >= 3
    assert child.pause_s >= 0.04
    said = capsys.readouterr().out
    assert "exit status 3" in said
    assert str(child.log_path) in said


def test_the_pause_has_a_ceiling(tmp_path):
    child = program(tmp_path, "raise SystemExit(1)", pause_s=module.LONGEST_PAUSE_S)
    child.start()
    child.process.wait()
    child.look()
    assert child.pause_s == module.LONGEST_PAUSE_S


def test_a_program_that_was_well_is_started_again_at_once(tmp_path):
    child = program(tmp_path, "raise SystemExit(1)", pause_s=16.0)
    child.start()
    child.process.wait()
    child.started_at -= module.WELL_AFTER_S + 1
    child.look()
    assert child.restart_at - time.monotonic() <= module.FIRST_PAUSE_S


def test_programs_stop_in_the_reverse_order_of_their_start(tmp_path):
    order = tmp_path / "order"
    script = (
        "import signal, sys\n"
        "def end(*_):\n open(sys.argv[1], 'a').write(sys.argv[2] + ' '); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('ready'); signal.pause()"
    )
    programs = [program(tmp_path, script, name) for name in ("first", "second", "third")]
    for child in programs:
        child.command += [str(order), child.name]
    supervisor = Supervisor()
    for child in programs:
        supervisor.start(child)
    wait_for(lambda: all(child.log_path.read_text() == "ready\n" for child in programs))
    supervisor.stop()
    assert order.read_text().split() == ["third", "second", "first"]


def test_a_program_that_ignores_the_signal_is_killed_with_its_children(tmp_path):
    script = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print(child.pid); signal.pause()"
    )
    child = program(tmp_path, script, patience_s=0.2)
    child.start()
    wait_for(lambda: child.log_path.read_text().endswith("\n"))
    grandchild = int(child.log_path.read_text())
    child.stop()
    wait_for(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


@pytest.mark.faults
def test_nothing_outlives_a_supervisor_killed_by_sigkill(tmp_path):
    script = (
        "import os, pathlib, sys, time\nfrom standalone.supervisor import Program\n"
        f"log = pathlib.Path({str(tmp_path / 'log')!r})\n"
        f"child = Program('child', [sys.executable, '-c', {FOREVER!r}], dict(os.environ), log)\n"
        "child.start(); print(child.process.pid, flush=True); sys.stdin.read()"
    )
    parent = psutil.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    child.wait(10)
    assert not child.is_running()


def test_a_log_that_has_grown_too_large_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOG_BYTES", 10)
    child = program(tmp_path, "print('new')")
    child.log_path.write_text("x" * 11)
    child.start()
    child.process.wait()
    assert child.log_path.read_text() == "new\n"
    assert child.log_path.with_suffix(".log.1").read_text() == "x" * 11


def test_exits_are_described_in_words():
    assert describe_exit(2) == "exit status 2"
    assert describe_exit(-9) == "killed by SIGKILL"


@pytest.mark.skipif(
    not may_choose_batch(), reason="policies of processes are Linux's, and a sandbox may forbid them"
)
def test_what_gives_way_hands_it_on_to_what_it_starts():
    script = (
        "import os, subprocess, sys\nfrom standalone import processes\n"
        "processes.give_way()\n"
        "subprocess.run([sys.executable, '-c', 'import os; print(os.sched_getscheduler(0))'], check=True)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(told) == os.SCHED_BATCH
