"""Real processes on the test's own database: workers and the reconciler, to be killed, stopped and watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from django.conf import settings
from django.db import connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from common.models import Lease, OutboxEvent
from jobs.models import Job, JobEvent
from jobs.services import job_submit

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def until(what: str, found: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Look at rows until they are as wanted; fail with the name of what did not come."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.03)
    raise AssertionError(f"within {patience_s:g} s there was no {what}")


@dataclass
class Stack:
    """The processes of one test."""

    people: Any
    folder: Path
    app: str = "tests.faults.fake_worker"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, node: str) -> dict[str, str]:
        """Like production's, but with the test's database and short leases."""
        parts = conninfo_to_dict(settings.DATABASE_URL)
        url = make_conninfo(**{**parts, "dbname": connection.settings_dict["NAME"]})
        return {
            **os.environ,
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "config.settings.test",
            "TURNOUT_DATA_DIR": str(self.folder),
            "TURNOUT_IMPORT_ROOTS": str(self.folder),
            "TURNOUT_NODE": node,
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, command: list[str], node: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=self.environment(node),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.processes[name] = process
        return process

    def worker(
        self, name: str = "a", *, concurrency: int = 2, node: str = "node-1"
    ) -> subprocess.Popen[bytes]:
        """Start a worker; several may share a node and so its disk."""
        return self.start(
            f"worker-{name}",
            ["-m", "celery", "-A", self.app, "worker", "-P", "threads", "-c", str(concurrency), "-n", f"{name}@test",
             "--without-gossip", "--without-mingle", "--loglevel", "INFO"],
            node,
        )  # fmt: skip

    def ready(self, name: str) -> None:
        """Wait until a worker takes jobs: starting Python is no part of what is measured."""
        log = self.folder / f"worker-{name}.log"
        until(f"worker {name}", lambda: f"{name}@test ready" in log.read_text())

    def reconciler(self) -> subprocess.Popen[bytes]:
        return self.start("reconciler", ["manage.py", "reconciler"], "node-1")

    def submit(self, script: str) -> Job:
        """An import whose child does what the script says."""
        source = self.folder / "source"
        source.mkdir(exist_ok=True)
        spec = {"name": script, "source": {"kind": "folder", "path": str(source)}}
        return job_submit(caller=self.people.owner, kind="import", spec=spec)

    def stop(self) -> None:
        """End everything, gently first."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def logs(self) -> str:
        """The ends of all logs, for a failed test's report."""
        return "\n".join(
            f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))
        )


def job_in(job: Job, *states: str) -> Callable[[], Job | None]:
    """A look for `until`: the job's row once it is in one of the states."""
    return lambda: (
        Job.objects.select_related("result_version__model").filter(pk=job.pk, state__in=states).first()
    )


def children_in(folder: Path) -> list[int]:
    """Processes whose command line names something below the folder: what a worker left behind."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder / "work").encode() in command:
                found.append(int(entry.name))
    return found


def flush_valkey() -> None:
    """Empty the broker."""
    redis.Redis.from_url(settings.REDIS_URL).flushall()


def check_invariants(folder: Path) -> None:
    """What holds after every fault, once all jobs have ended."""
    for job in Job.objects.all():
        seqs = list(JobEvent.objects.filter(job=job).values_list("seq", flat=True))
        assert seqs == list(range(1, job.last_seq + 1)), f"{job}: the events have gaps"
        epochs = list(JobEvent.objects.filter(job=job, epoch__gt=0).values_list("epoch", flat=True))
        assert epochs == sorted(epochs), f"{job}: an older epoch wrote after a newer one"
        if job.has_ended:
            assert Lease.objects.get(resource=job.resource).holder is None
    until("empty outbox", lambda: not OutboxEvent.objects.filter(delivered_at=None).exists())
    until("end of all children", lambda: not children_in(folder))
    until("empty work folder", lambda: not list((folder / "work").glob("*/*/job.json")))
