"""Turnout itself: the engine on its own socket, and the whole instance behind its gateway as a client sees it.

The engine's socket (HTTP over a unix socket) is what gives tokens to be judged, and time and memory of loading. What a
client pays for keys, quotas, usage and the web process is in the figures of the gateway.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accounting import tree
from benchmarks.client import ClientError, Endpoint, complete
from benchmarks.home import ROOT, Home
from benchmarks.models import model_dir
from benchmarks.peers.server import GREETING, Server, StartFailed, free_port
from console.demo.client import Api, ApiError
from moe_core.checkpoint.hashes import hashes_of
from standalone import processes
from standalone.demo import demo_access
from standalone.instance import Instance, running_instance

FORMATS = {"16 bits": ("bf16", ""), "8 bits": ("w8", "-q8r"), "4 bits": ("w4", "-q4s")}
SEQUENCES, STEP_TOKENS = 16, 512
START_PATIENCE_S, READY_PATIENCE_S, STOP_PATIENCE_S = 300.0, 300.0, 90.0


def engine_servers(
    home: Home, model: str, formats: tuple[str, ...] = tuple(FORMATS), ngram_tokens: int | None = 0
) -> list[Server]:
    """The engine's own server, one for each format; without guesses, which `guesses.py` measures, unless told otherwise."""
    sockets = Path(tempfile.mkdtemp(prefix="turnout-bench-"))
    return [_engine(home, sockets, model + suffix, f"engine {kind}", precision, ngram_tokens)
            for precision, (kind, suffix) in FORMATS.items() if precision in formats]  # fmt: skip


def write_panels(home: Home, server: Server | Gateway, threads: int) -> float:
    """Start an engine once, alone or in its instance, so that its panels are written; the seconds until its first token.

    Peers' formats are exported before they are measured too. Raises StartFailed when it does not come to answer.
    """
    folder = home.folder("instance") / "panels" if isinstance(server, Gateway) else home.folder("panels")
    until = time.monotonic() + START_PATIENCE_S
    left_behind = set(folder.glob(".*.tmp"))
    seconds = server.start(threads)
    # The file gets its name when it is whole.
    while set(folder.glob(".*.tmp")) - left_behind and time.monotonic() < until:
        time.sleep(0.1)
    server.stop()
    return seconds


def _engine(
    home: Home, sockets: Path, model: str, name: str, precision: str, ngram_tokens: int | None = 0
) -> Server:
    path, model_path = sockets / f"{model[-24:]}.sock", model_dir(model, home.models)
    return Server(
        name=name,
        peer="Turnout",
        precision=precision,
        command=partial(_engine_command, home, model_path, hashes_of(model_path), path, ngram_tokens),
        endpoint=lambda _port: Endpoint("engine", socket_path=str(path)),
        log=home.logs / f"{name.replace(' ', '-')}.log",
    )


def _engine_command(
    home: Home,
    model: Path,
    files: dict[str, str],
    socket_path: Path,
    ngram_tokens: int | None,
    _port: int,
    threads: int,
) -> list[str]:
    told = {
        "model_dir": str(model), "files": files, "panel_dir": str(home.folder("panels")),
        "socket_path": str(socket_path), "num_threads": threads, "device": "cpu",
        "max_sequences": SEQUENCES, "max_batch_tokens": STEP_TOKENS, "max_wait_s": 600.0,
        "ngram_tokens": ngram_tokens,
    }  # fmt: skip
    spec = home.folder("specs") / f"{socket_path.stem}-{threads}.json"
    spec.write_text(json.dumps(told))
    socket_path.unlink(missing_ok=True)
    return [sys.executable, "-m", "moe_core.engine.server", str(spec)]


@dataclass(slots=True)
class Platform:
    """A whole instance with its own data folder: database, broker, web, reconciler, worker."""

    home: Home
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    instance: Instance | None = None
    api: Api | None = None

    def start(self) -> Api:
        """Start it, unless it runs, and get a key."""
        if self.api is None:
            self.instance = self._started()
            token = demo_access(self.instance.environment)["token"]
            self.api = Api(self.instance.address.rstrip("/"), token)
        return self.api

    def _started(self) -> Instance:
        data, log = self.home.folder("instance"), self.home.logs / "instance.log"
        environment = {
            **os.environ,
            "TURNOUT_DATA_DIR": str(data),
            "TURNOUT_IMPORT_ROOTS": str(self.home.models),
            "TURNOUT_PORT": str(free_port()),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]),
        }
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "standalone", "up", "--no-demo"], cwd=ROOT, env=environment,
                stdout=output, stderr=output, start_new_session=True,
                preexec_fn=processes.die_with_parent(signal.SIGTERM),
            )  # fmt: skip
        if not processes.wait_until(
            lambda: running_instance(data) is not None, self.process, START_PATIENCE_S
        ):
            raise StartFailed(f"the instance did not start; see {log}")
        found = running_instance(data)
        if found is None:
            raise StartFailed(f"the instance stopped again; see {log}")
        return found

    def pids(self) -> set[int]:
        """All its processes, engines included."""
        return tree([self.process.pid]) if self.process else set()

    def stop(self) -> None:
        """End it; its data stays."""
        if self.process is not None:
            processes.stop(self.process, signal.SIGINT, STOP_PATIENCE_S)
        self.process = self.instance = self.api = None

    def version_of(self, name: str) -> int:
        """The registered version of a benchmark model, imported when it is not there."""
        api = self.start()
        for model in api.get("/api/v1/models/")["results"]:
            if model["name"] == name:
                versions = api.get(f"/api/v1/versions/?model={model['id']}")["results"]
                if versions:
                    return int(versions[0]["id"])
        source = {"kind": "folder", "path": str(model_dir(name, self.home.models))}
        job = api.post("/api/v1/jobs/", {"kind": "import", "spec": {"name": name, "source": source}})
        return int(api.wait(job["id"], lambda _job: None)["result_version"])


@dataclass(slots=True)
class Gateway:
    """One deployment of the instance, asked through `/v1` with a key; the same face as a Server."""

    platform: Platform
    name: str
    precision: str
    model: str
    peer: str = "Turnout"
    stays: bool = False
    note: str = "through the gateway, with a key"
    at: Endpoint = field(init=False, repr=False)
    threads: int = 0
    deployment: int = 0

    def start(self, threads: int) -> float:
        """Deploy with so many threads and wait for the first token; seconds from the order to scale up."""
        api = self.platform.start()
        version = self.platform.version_of(self.model)
        label = f"{self.model}-{threads}"
        found = [one for one in api.get("/api/v1/deployments/")["results"] if one["name"] == label]
        settings = {
            "num_threads": threads, "max_sequences": SEQUENCES, "max_batch_tokens": STEP_TOKENS, "ngram_tokens": None,
        }  # fmt: skip
        if found:
            # An earlier release may have kept other defaults; what is so already makes no revision.
            api.call("PATCH", f"/api/v1/deployments/{found[0]['id']}/", {"settings": settings})
        began = time.perf_counter()
        if found:
            self.deployment = found[0]["id"]
            api.post(f"/api/v1/deployments/{self.deployment}/scale/", {"replicas": 1})
        else:
            made = api.post(
                "/api/v1/deployments/",
                {"name": label, "version": version, "replicas": 1, "settings": settings},
            )
            self.deployment = made["id"]
        assert self.platform.instance is not None
        port = int(self.platform.instance.address.rstrip("/").rpartition(":")[2])
        headers = {"Authorization": f"Bearer {api.token}"}
        self.at, self.threads = Endpoint("openai", port, model=label, headers=headers), threads
        asyncio.run(self._first_token(api))
        return time.perf_counter() - began

    async def _first_token(self, api: Api) -> None:
        until = time.monotonic() + READY_PATIENCE_S
        while True:
            try:
                await complete(self.at, GREETING, 1)
                return
            except (OSError, ClientError, asyncio.IncompleteReadError) as error:
                if time.monotonic() > until:
                    raise StartFailed(f"{self.name} did not answer: {error}") from error
            await asyncio.sleep(0.1)

    def pids(self) -> set[int]:
        """The whole instance: its processes work for this answer too."""
        return self.platform.pids()

    def freeze(self) -> None:
        """Nothing: it is stopped, not frozen."""

    def thaw(self) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Scale to nothing, and wait until the engine has gone."""
        api: Any = self.platform.api
        if api is None or not self.deployment:
            return
        try:
            api.post(f"/api/v1/deployments/{self.deployment}/scale/", {"replicas": 0})
        except ApiError:
            return
        until = time.monotonic() + STOP_PATIENCE_S
        while time.monotonic() < until:
            state = api.get(f"/api/v1/deployments/{self.deployment}/")
            if not state["replicas"]:
                return
            time.sleep(0.2)


def gateways(home: Home, model: str) -> list[Gateway]:
    """One for each format, of one instance."""
    platform = Platform(home)
    return [
        Gateway(platform, f"Turnout {kind}", precision, model + suffix)
        for precision, (kind, suffix) in FORMATS.items()
    ]


def dense_engine(home: Home, model: str) -> Server:
    """The engine with a dense model of the same total size."""
    return _engine(home, Path(tempfile.mkdtemp(prefix="turnout-bench-")), model, "engine dense", "16 bits")
