"""`./turnout demo`: the whole main job through the REST API, on the running instance or on one started for it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from standalone import paths, processes
from standalone.errors import ServiceFailed, StandaloneError
from standalone.instance import Instance, running_instance
from standalone.terminal import note, say

START_PATIENCE_S = 120.0
STOP_PATIENCE_S = 90.0


def run(_name: str, arguments: list[str]) -> int:
    """Find or start an instance, get a token there, and let the demo client do the job."""
    parser = argparse.ArgumentParser(
        prog="./turnout demo",
        description="Run the main job from end to end through the REST API. Other options go to the demo client.",
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="where the JSON report goes (default: demo-report.json in the data folder)",
    )
    chosen, rest = parser.parse_known_args(arguments)
    report = chosen.report or paths.data_dir() / "demo-report.json"
    with an_instance() as instance:
        access = demo_access(instance.environment)
        environment = {**os.environ, "TURNOUT_ADDRESS": instance.address, "TURNOUT_TOKEN": access["token"]}
        command = [sys.executable, "-m", "console.demo", "--report", str(report.resolve()), *rest]
        status = subprocess.run(command, cwd=paths.ROOT, env=environment, check=False).returncode
    note(f"The report is in {report}")
    if access.get("password"):
        say(f"To look around: ./turnout up, then sign in as {access['username']} with {access['password']}")
    return status


@contextmanager
def an_instance() -> Iterator[Instance]:
    """Yield the instance that runs in the data folder; where none runs, start one and stop it afterwards."""
    data_dir = paths.data_dir()
    running = running_instance(data_dir)
    if running is not None:
        note(f"Using the instance at {running.address}")
        yield running
        return
    process = start_instance(data_dir)
    try:
        yield wait_for_record(process, data_dir)
    finally:
        processes.stop(process, signal.SIGINT, STOP_PATIENCE_S)


def start_instance(data_dir: Path) -> subprocess.Popen[bytes]:
    """Start `up` beside us, on the default port or on a free one."""
    note(f"No instance runs in {data_dir}; starting one")
    port = str(paths.port() if os.environ.get("TURNOUT_PORT") else free_port(paths.DEFAULT_PORT))
    return subprocess.Popen(
        [sys.executable, "-m", "standalone", "up", "--port", port],
        start_new_session=True,
        preexec_fn=processes.die_with_parent(signal.SIGTERM),
    )


def wait_for_record(process: subprocess.Popen[bytes], data_dir: Path) -> Instance:
    """Wait until the instance serves pages and has said where."""
    if not processes.wait_until(lambda: running_instance(data_dir) is not None, process, START_PATIENCE_S):
        raise ServiceFailed(f"the instance did not start; see {data_dir / 'log'}")
    instance = running_instance(data_dir)
    if instance is None:
        raise ServiceFailed(f"the instance stopped again; see {data_dir / 'log'}")
    return instance


def free_port(wanted: int) -> int:
    """Return the wanted port, or any free one when it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StandaloneError("no free TCP port was found on 127.0.0.1")


def demo_access(environment: Mapping[str, str]) -> dict[str, str]:
    """Make a token inside the instance (this terminal owns its data folder, so it may)."""
    command = [sys.executable, "-m", "standalone.demo_access"]
    base = {"DJANGO_SETTINGS_MODULE": "config.settings.dev", **os.environ}
    done = subprocess.run(command, env=base | dict(environment), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StandaloneError(f"no token could be made for the demo:\n{done.stderr[-3000:]}")
    access: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return access
