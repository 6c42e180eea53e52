"""A child process: heard line by line, bounded, without secrets, and never left behind."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from workers.runtime import ROOT, Child, how_it_ended, message_of
from workers.spawn import Limits, scrubbed_environment


def start(tmp_path: Path, code: str, **more) -> Child:
    return Child({}, tmp_path, command=[sys.executable, "-c", code], **more)


def said(child: Child) -> list[tuple[str, dict]]:
    lines = [(message.kind, message.payload) for message in child.messages()]
    child.wait()
    return lines


def test_it_hears_both_pipes_until_the_end(tmp_path) -> None:
    child = start(
        tmp_path,
        'import sys; print(\'{"kind": "step", "step": 1}\'); print(\'oops\', file=sys.stderr); sys.exit(3)',
    )
    assert sorted(said(child)) == [("stderr", {"text": "oops"}), ("step", {"step": 1})]
    assert child.wait() == 3


NO_MESSAGES = [
    b"not json", b"[1]", b'{"kind": 1}', b'{"kind":"step","loss":NaN}', b'{"kind":"a","kind":"b"}',
    b'{"kind":"x","text":"\\u0000"}', b"\xff\xfe", b"[" * 5000,
]  # fmt: skip
TELL = "import json, os, resource, signal, subprocess, sys, time\ntell = lambda **o: print(json.dumps(o), flush=True)\n"


@pytest.mark.parametrize("raw", NO_MESSAGES)
def test_a_line_that_is_no_message_is_a_log_line(raw) -> None:
    assert message_of(raw).kind == "stderr"


def test_an_endless_line_is_cut_not_kept(tmp_path) -> None:
    child = start(tmp_path, "import sys; sys.stdout.write('x' * 5_000_000)")
    lines = said(child)
    assert all(kind == "stderr" for kind, _payload in lines)
    assert all(len(payload["text"]) < 500 for _kind, payload in lines)


def test_its_environment_holds_no_address_and_no_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TURNOUT_SECRET_KEY", "s")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    child = start(
        tmp_path, "import os, json; print(json.dumps({'kind': 'log', 'names': sorted(os.environ)}))"
    )
    names = set(said(child)[0][1]["names"])
    assert not names & {
        "DATABASE_URL",
        "REDIS_URL",
        "TURNOUT_SECRET_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "DJANGO_SETTINGS_MODULE",
    }
    assert names <= set(scrubbed_environment()) | {"LC_CTYPE"}


def test_it_has_a_session_of_its_own_and_no_core_dumps(tmp_path) -> None:
    code = TELL + "tell(kind='log', sid=os.getsid(0), core=resource.getrlimit(resource.RLIMIT_CORE)[0])"
    child = start(tmp_path, code)
    assert said(child) == [("log", {"sid": child.process.pid, "core": 0})]


def test_it_cannot_take_more_memory_than_it_may(tmp_path) -> None:
    child = start(tmp_path, "x = bytearray(2_000_000_000)", limits=Limits(memory_bytes=1_000_000_000))
    assert any("MemoryError" in payload["text"] for _kind, payload in said(child))
    assert child.wait() == 1


def test_killing_takes_what_it_started_along(tmp_path) -> None:
    code = TELL + (
        "p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "tell(kind='log', pid=p.pid)\n"
        "p.wait()"
    )
    child = start(tmp_path, code)
    grandchild = os.pidfd_open(next(iter(child.messages())).payload["pid"])
    child.kill()
    assert child.wait() == -9
    assert ended(grandchild), "what the child started outlived it"


def test_it_dies_with_the_worker_that_started_it(tmp_path) -> None:
    """The worker is killed by SIGKILL, and the thread that asked for the child has long ended."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, str(script), str(tmp_path), TELL + "tell(kind='up')\nsignal.pause()"]
    worker = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    child = os.pidfd_open(int(worker.stdout.readline()))
    worker.kill()
    worker.wait()
    worker.stdout.close()
    assert ended(child), "the child outlived its worker"


WORKER = """
import signal, sys, threading
from pathlib import Path
from workers.runtime import Child

child = None
def ask():
    global child
    child = Child({}, Path(sys.argv[1]), command=[sys.executable, "-c", sys.argv[2]])
thread = threading.Thread(target=ask)
thread.start()
thread.join()
next(iter(child.messages()))
print(child.process.pid, flush=True)
signal.pause()
"""


def ended(pidfd: int) -> bool:
    """Wait for the end of a process that is not ours."""
    try:
        return bool(select.select([pidfd], [], [], 10)[0])
    finally:
        os.close(pidfd)


def test_the_wish_to_stop_is_left_whole_in_the_control_file(tmp_path) -> None:
    code = TELL + (
        "control = json.load(open(sys.argv[1]))['control']\n"
        "while not os.path.exists(control): time.sleep(0.01)\n"
        "tell(kind='stopped', how=open(control).read())"
    )
    child = start(tmp_path, code)
    child.ask_to_stop("pause")
    assert said(child) == [("stopped", {"how": "pause"})]
    assert json.loads((tmp_path / "job.json").read_text()) == {"control": str(tmp_path / "control")}


def test_a_signal_is_named() -> None:
    assert "memory" in how_it_ended(-9)
    assert "status 3" in how_it_ended(3)


def test_a_child_that_floods_waits_for_us(tmp_path) -> None:
    """The queue is bounded: a child that talks faster than we write is slowed by its pipe."""
    child = start(tmp_path, TELL + "for n in range(20000): tell(kind='log', text=str(n))")
    assert next(iter(child.messages())).payload["text"] == "0"
    assert child.lines.qsize() <= child.lines.maxsize
    assert len(said(child)) == 19999
    assert child.wait() == 0
