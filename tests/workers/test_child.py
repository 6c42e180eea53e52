"""The child process of a job: its words on stdout, its status, and how it heeds the wish to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_core.errors import HashMismatch, NonFiniteLoss, SpecError
from moe_core.training import Paused
from tests.moe_core.training.world import make_world, tune_spec
from workers import child
from workers.child import CANCELLED, DONE, FAILED, PAUSED, Wire, code_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def job_file(world: Path, folder: Path, kind: str = "tune", **changes: Any) -> Path:
    job = {
        "kind": kind,
        "spec": tune_spec(specialise_steps=2, route_steps=2, **changes),
        "inputs": {name: str(world / name) for name in ("model", "train.jsonl", "held_out.jsonl")},
        "out_dir": str(folder / "out"),
        "checkpoint_dir": str(folder / "checkpoints"),
        "control": str(folder / "control"),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def said_by(raw: bytes) -> list[dict[str, Any]]:
    """Every line of stdout; each must be JSON, whatever a library printed."""
    return [json.loads(line) for line in raw.splitlines()]


@pytest.fixture
def run_here(capfdbinary: Any, monkeypatch: pytest.MonkeyPatch):
    """Run a job in this process with its words caught; the signal handler of the test run is put back."""

    def run(path: Path) -> tuple[int, list[dict[str, Any]]]:
        before = signal.getsignal(signal.SIGTERM)
        try:
            status = child.run(path, Wire(1))
        finally:
            signal.signal(signal.SIGTERM, before)
        return status, said_by(capfdbinary.readouterr().out)

    return run


def test_a_whole_process_says_json_lines_only_and_ends_with_its_result(world: Path, tmp_path: Path) -> None:
    # A library that prints must not break the protocol.
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit\natexit.register(print, 'goodbye from a library')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "workers.child", str(job_file(world, tmp_path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment, timeout=200)
    assert done.returncode == DONE, done.stderr.decode()[-2000:]
    lines = said_by(done.stdout)
    assert {line["kind"] for line in lines} == {"stage", "step", "report", "checkpoint", "result"}
    assert lines[-1]["kind"] == "result"
    assert set(lines[-1]["result"]) == {"spec", "inspection", "tuning", "lineage"}
    assert (tmp_path / "out" / "config.json").exists()
    assert b"goodbye from a library" in done.stderr


def test_a_cancel_in_the_control_file_ends_it(world: Path, tmp_path: Path, run_here: Any) -> None:
    path = job_file(world, tmp_path)
    (tmp_path / "control").write_text("cancel")
    status, lines = run_here(path)
    assert status == CANCELLED
    assert lines[-1] == {"kind": "stopped", "how": "cancel"}


def test_a_term_signal_pauses_it_after_a_checkpoint_and_it_goes_on(
    world: Path, tmp_path: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job_file(world, tmp_path)
    saved = child.ChildIO.saved_checkpoint

    def save_and_signal(self: child.ChildIO, place: Path, step: int, stage: str, sha256: str) -> None:
        saved(self, place, step, stage, sha256)
        if (stage, step) == ("specialise", 1):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(child.ChildIO, "saved_checkpoint", save_and_signal)
    status, lines = run_here(path)
    assert status == PAUSED
    assert lines[-1] == {"kind": "stopped", "how": "pause"}
    checkpoint = [line for line in lines if line["kind"] == "checkpoint"][-1]
    assert checkpoint["stage"] == "specialise"
    assert Path(checkpoint["path"], "manifest.json").exists()
    monkeypatch.setattr(child.ChildIO, "saved_checkpoint", saved)
    status, lines = run_here(path)
    assert status == DONE
    assert any(line["kind"] == "log" and "resumed in stage specialise" in line["text"] for line in lines)


def test_a_failure_has_a_code_and_a_sentence(world: Path, tmp_path: Path, run_here: Any) -> None:
    status, lines = run_here(job_file(world, tmp_path, layout=None))
    assert status == FAILED
    assert lines[-1]["kind"] == "failed"
    assert lines[-1]["code"] == "spec_error"
    assert "layout" in lines[-1]["message"]


def test_a_fault_of_the_program_is_a_crash_not_a_failure(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text("{}")
    command = [sys.executable, "-m", "workers.child", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=200)
    assert done.returncode not in (DONE, CANCELLED, PAUSED, FAILED)
    assert done.stdout == b""
    assert b"KeyError" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NonFiniteLoss("x"), "non_finite_loss"),
        (SpecError("x"), "spec_error"),
        (HashMismatch("a", "b", "c"), "hash_mismatch"),
        (Paused("x"), "paused"),
        (OSError(28, "No space left on device"), "no_space"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), "out_of_memory"),
        (RuntimeError("a bug"), None),
        (OSError(2, "No such file"), None),
    ],
)
def test_errors_that_would_come_again_have_codes_and_crashes_have_none(
    error: Exception, code: str | None
) -> None:
    assert code_of(error) == code


def test_lines_of_many_threads_do_not_mix() -> None:
    from concurrent.futures import ThreadPoolExecutor

    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        wire = Wire(writer)
        with ThreadPoolExecutor(8) as pool:
            for number in range(200):
                pool.submit(wire.send, "step", {"number": number, "pad": "x" * 100})
        os.close(writer)
        numbers = [json.loads(line)["number"] for line in stream]
    assert sorted(numbers) == list(range(200))


def test_a_number_that_json_does_not_have_is_refused_at_the_source() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Wire(-1).send("step", {"loss": float("nan")})
