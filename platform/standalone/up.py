"""`./turnout up`: everything on one machine, in front of the person who started it."""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from standalone import paths, processes, web
from standalone.build import KernelBuild, compile_catalogs
from standalone.environment import DEMO_SIZE
from standalone.errors import ServiceFailed, StandaloneError
from standalone.instance import Instance, InstanceLock
from standalone.preparation import Preparation
from standalone.services import Services, services_for
from standalone.supervisor import Program, Supervisor
from standalone.terminal import note, say

FIRST_PAGE_PATIENCE_S = 60.0
KERNEL_PATIENCE_S = 600.0
DRAIN_S = 10
ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104


def options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="./turnout up", description="Set everything up and start it; Ctrl-C stops it."
    )
    parser.add_argument("--port", help=f"the web port (default {paths.DEFAULT_PORT}, or TURNOUT_PORT)")
    parser.add_argument(
        "--bind", default=os.environ.get("TURNOUT_BIND") or "127.0.0.1", help="the address to listen on"
    )
    parser.add_argument("--no-demo", action="store_true", help=f"do not get the demo model ({DEMO_SIZE})")
    parser.add_argument("--no-worker", action="store_true", help="start web and reconciler only")
    chosen = parser.parse_args(arguments)
    chosen.port = paths.port() if chosen.port is None else paths.port_of(chosen.port)
    return chosen


def run(_name: str, arguments: list[str]) -> int:
    """Start, keep running, stop."""
    chosen = options(arguments)
    data_dir = paths.data_dir()
    lock = InstanceLock(data_dir)
    lock.take()
    services = services_for(data_dir)
    supervisor = Supervisor()
    supervisor.listen_to_signals()
    processes.give_way()
    try:
        refuse_taken_port(chosen.bind, chosen.port)
        kernels = KernelBuild()
        compile_catalogs()
        start_services(services)
        environment = child_environment(services, chosen)
        web_program, *others = programs(environment, data_dir / "log", chosen)
        token = start_web(supervisor, web_program, services, chosen)
        if not supervisor.stopping:
            note("The first page is served; Ctrl-C stops everything")
            address = f"http://{host_in_url(chosen.bind)}:{chosen.port}/"
            record = services.environment | {"TURNOUT_PORT": str(chosen.port)}
            lock.publish(Instance(os.getpid(), address, record))
            say(ready_line(address, token))
        supervisor.wait_for(kernels.is_done, KERNEL_PATIENCE_S)  # the worker's children load them
        for program in [] if supervisor.stopping else others:
            supervisor.start(program)
        supervisor.keep_running()
    finally:
        note("Stopping …")
        supervisor.stop()
        services.stop()
        lock.release()
    note("Stopped; your data is kept.")
    return 0


def start_web(
    supervisor: Supervisor, program: Program, services: Services, chosen: argparse.Namespace
) -> str | None:
    """Prepare the database and start web until it serves; return the first admin's token if there is none."""
    ours = services.postgres is not None
    preparation = Preparation(services.data_dir, program.environment, database_is_ours=ours)
    formality = preparation.is_formality()
    preparation.start()
    token = None if formality else preparation.finish()
    note("Web, reconciler and worker are starting …")
    supervisor.start(program)
    wait_for_first_page(supervisor, chosen, program.log_path)
    return preparation.finish() if formality else token


def start_services(services: Services) -> None:
    """Start the database and the broker and say which."""
    services.start()
    for name, server in (("PostgreSQL", services.postgres), ("Valkey", services.valkey)):
        if server is None:
            note(f"{name}: the one that the environment names")
        else:
            note(
                f"{name} {server.program.version()} runs ({server.program.source}, unix socket in {services.run_dir})"
            )


def child_environment(services: Services, chosen: argparse.Namespace) -> dict[str, str]:
    """Return what every child sees."""
    return {
        "DJANGO_SETTINGS_MODULE": "config.settings.dev",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        **services.environment,
        "TURNOUT_PORT": str(chosen.port),
    }


def programs(environment: Mapping[str, str], logs: Path, chosen: argparse.Namespace) -> list[Program]:
    """Name the programs of one instance, in the order of their start."""
    python, manage = sys.executable, str(paths.ROOT / "manage.py")
    worker = [
        python, "-m", "celery", "-A", "workers.app", "worker", "--pool", "threads", "--concurrency", "4",
        "--without-gossip", "--without-mingle", "--loglevel", "INFO",
    ]  # fmt: skip
    listed = [
        Program(
            "web", web.command(chosen.bind, chosen.port, DRAIN_S), environment, logs / "web.log", DRAIN_S + 5
        ),
        Program("reconciler", [python, manage, "reconciler"], environment, logs / "reconciler.log"),
    ]
    if not chosen.no_worker:
        listed.append(Program("worker", worker, environment, logs / "worker.log", patience_s=40))
    return listed


def refuse_taken_port(bind: str, port: int) -> None:
    """Say at once when somebody else listens on the port."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError as error:
            raise StandaloneError(
                f"port {port} on {bind} cannot be used ({error.strerror}). "
                f"Choose another: TURNOUT_PORT={port + 1 if port + 1 in paths.PORTS else paths.DEFAULT_PORT} ./turnout up"
            ) from None


def wait_for_first_page(supervisor: Supervisor, chosen: argparse.Namespace, log: Path) -> None:
    """Wait until the web answers a request as it should."""
    if (
        not supervisor.wait_for(lambda: answers(chosen.bind, chosen.port), FIRST_PAGE_PATIENCE_S)
        and not supervisor.stopping
    ):
        raise ServiceFailed(
            f"the web did not answer within {FIRST_PAGE_PATIENCE_S:g} s. Its log {log} ends:\n{processes.tail(log)}"
        )


def answers(bind: str, port: int) -> bool:
    """True when a page is served."""
    connection = http.client.HTTPConnection(host_to_call(bind), port, timeout=10)
    try:
        connection.request("GET", "/signin/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


def host_to_call(bind: str) -> str:
    """Return an address at which a server bound there can be reached from here."""
    return "127.0.0.1" if bind in ALL_ADDRESSES else bind


def host_in_url(bind: str) -> str:
    """Return that address as a URL spells it."""
    host = host_to_call(bind)
    return f"[{host}]" if ":" in host else host


def ready_line(address: str, token: str | None) -> str:
    """Return the one line that matters: the address, and the way to become the first admin."""
    if token is None:
        return f"Turnout runs at {address}"
    return f"Turnout runs at {address} - make the first admin here (works once): {address}setup/{token}/"
