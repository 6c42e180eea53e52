"""A node agent and the reconciler's loops in threads of the test, over real engines of tiny models."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import close_old_connections, connection

from deployments.models import Deployment, Replica
from deployments.reconcile import reconcile_all
from deployments.states import ReplicaState
from moe_core.model.decoder import Decoder
from registry.models import ModelVersion
from registry.services import model_find_or_create, version_create
from telemetry.ingest import Ingester
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir
from workers.node_agent import NodeAgent

PATIENCE_S = 120.0
SETTINGS = {"dtype": "float32", "num_threads": 1, "kv_tokens": 4096}


def until(happened: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Look again until something is true, and return it."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(0.02)
    raise AssertionError(f"it did not happen within {patience_s:g} s")


def real_version(
    people: Any, folder: Path, *, model: Decoder | None = None, name: str = "Tiny", who: str = "owner"
) -> ModelVersion:
    """Register a tiny model that can really be served."""
    caller = getattr(people, who)
    directory = Path(tempfile.mkdtemp(dir=folder))
    model = model or tiny_model()
    write_model_dir(directory, model)
    return version_create(
        caller_team=caller.team,
        model=model_find_or_create(team=caller.team, name=name, created_by=caller.user),
        spec=model.spec,
        inspection={},
        directory=directory,
        created_by=caller.user,
    )


class Turning(threading.Thread):
    """Turns a loop as the reconciler does."""

    def __init__(self, turn: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.turn, self.stopping = turn, threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.turn()
            close_old_connections()
            self.stopping.wait(0.05)
        connection.close()

    def stop(self) -> None:
        self.stopping.set()
        self.join(timeout=20)


@contextmanager
def serving_stack(django_settings: Any, folder: Path) -> Iterator[NodeAgent]:
    """Run an agent for node-1, the deployments loop and the telemetry loop."""
    run_dir = Path(tempfile.mkdtemp(prefix="turnout-e-"))
    django_settings.DATA_DIR, django_settings.RUN_DIR = folder / "data", run_dir
    ingester = Ingester()
    agent = NodeAgent(settings.NODE_NAME)
    loops = [Turning(reconcile_all), Turning(lambda: ingester.turn(0.3))]
    agent.start()
    for loop in loops:
        loop.start()
    try:
        yield agent
    finally:
        for loop in loops:
            loop.stop()
        agent.stop()
        shutil.rmtree(run_dir, ignore_errors=True)


def ready_replicas(deployment: Deployment) -> list[Replica]:
    """The replicas that answer now."""
    return list(Replica.objects.filter(deployment=deployment, state=ReplicaState.READY).order_by("id"))
