"""One engine process: its folder, its words, its health, its end."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from django.conf import settings

from common.processors import usable_processors
from deployments.domains import routing_served
from deployments.engine_settings import EngineSettings
from deployments.models import Replica
from moe_core.spec import RoutingSpec, ServeSpec
from moe_core.spec.serve import MAX_SOCKET_PATH_BYTES
from registry.store import materialise
from telemetry.selectors import expert_uses
from workers.engine_http import get_json
from workers.runtime import ROOT
from workers.spawn import Limits, kill_group, scrubbed_environment, spawner

log = logging.getLogger(__name__)
ENGINE = (sys.executable, "-m", "moe_core.engine.server")
HEALTH_TIMEOUT_S = 1.0
DRAIN_S = 20.0
LOG_LINES = 200
# All that an engine can be told of a map: a new field of both goes to it by itself.
POLICY_FIELDS = sorted(RoutingSpec.model_fields.keys() & ServeSpec.model_fields.keys())


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine could not go on: a code of ours, and the engine's own words."""

    code: str
    detail: str


def engine_folder(replica_id: int) -> Path:
    """Where a replica's model links, specification and log lie."""
    return Path(settings.DATA_DIR) / "engines" / str(replica_id)


def socket_path(replica_id: int, epoch: int) -> Path:
    """A path of its own for each epoch, so that no client meets another engine than it asked for."""
    path = Path(settings.RUN_DIR) / f"engine-{replica_id}-{epoch}.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise OSError(
            f"{path} is longer than {MAX_SOCKET_PATH_BYTES} bytes; set TURNOUT_RUN_DIR to a shorter folder"
        )
    return path


def serve_spec(replica: Replica, epoch: int) -> ServeSpec:
    """What the engine of this replica and epoch is told."""
    revision = replica.deployment.revisions.get(number=replica.revision)
    chosen = EngineSettings.parse(revision.settings)
    routing = routing_served(revision.domains, chosen)
    return ServeSpec(
        model_dir=engine_folder(replica.pk) / "model",
        files={name: entry["sha256"] for name, entry in replica.version.files.items()},
        socket_path=socket_path(replica.pk, epoch),
        panel_dir=Path(settings.DATA_DIR) / "panels",
        shares_panels=replica.deployment.desired_replicas > 1,
        version=str(replica.version)[:200],
        epoch=epoch,
        **{name: getattr(routing, name) for name in POLICY_FIELDS},
        dtype=chosen.dtype,
        weights=chosen.weights,
        num_threads=min(chosen.num_threads, usable_processors()),
        max_batch_tokens=chosen.max_batch_tokens,
        max_sequences=chosen.max_sequences,
        max_waiting=chosen.max_waiting,
        kv_tokens=chosen.kv_tokens,
        batch_invariant=chosen.batch_invariant,
        resident_experts=chosen.resident_experts,
        device_experts=chosen.device_experts,
        expert_uses=_uses(replica) if chosen.resident_experts or chosen.device_experts else (),
        expert_affinity_steps=chosen.expert_affinity_steps,
        # Settings that were stored before the pair was refused.
        ngram_tokens=0 if chosen.batch_invariant else chosen.ngram_tokens,
        drain_s=DRAIN_S,
    )


def _uses(replica: Replica) -> tuple[tuple[int, ...], ...]:
    """What the telemetry has counted of this version, by layer and expert."""
    return tuple(map(tuple, expert_uses(replica.deployment, replica.version_id)))


class EngineProcess:
    """A running engine of one epoch."""

    def __init__(self, replica: Replica, epoch: int, ring: Callable[[], None] = lambda: None) -> None:
        """Start it. `ring` is called, on threads of its own, when it says of a new state, and when it has ended."""
        self.epoch = epoch
        # Set when it has said of a new state; who has asked it for its health clears it before.
        self.has_spoken = threading.Event()
        self._ring = ring
        self.spec = serve_spec(replica, epoch)
        self.folder = engine_folder(replica.pk)
        self.tail: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self.failure: Failure | None = None
        self.terminated_at: float | None = None
        self._lay_out(replica)
        self.born = time.monotonic()
        self.process = spawner().spawn(
            [*ENGINE, str(self.folder / "spec.json")],
            cwd=ROOT,
            limits=Limits(),
            environment=scrubbed_environment({"OMP_NUM_THREADS": str(self.spec.num_threads)}),
        )
        for pipe, hear in ((self.process.stdout, self._hear_state), (self.process.stderr, self._hear_line)):
            assert pipe is not None
            threading.Thread(target=self._read, args=(pipe, hear), daemon=True).start()
        threading.Thread(target=self._await_end, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self.process.pid

    @property
    def age_s(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.born

    def exit_status(self) -> int | None:
        """How it ended, None while it runs."""
        return self.process.poll()

    def health(self) -> dict[str, Any] | None:
        """What the engine says of itself; None when it does not answer."""
        found = get_json(self.spec.socket_path, "/health", HEALTH_TIMEOUT_S)
        if found is not None and isinstance(found.get("error"), dict):
            self._fail(found["error"])
        return found

    def terminate(self) -> None:
        """Ask it once to finish its answers and end."""
        if self.terminated_at is None and self.process.poll() is None:
            self.terminated_at = time.monotonic()
            self.process.send_signal(signal.SIGTERM)

    def is_overdue(self) -> bool:
        """Whether it was asked to end and had its time."""
        return self.terminated_at is not None and time.monotonic() - self.terminated_at > DRAIN_S + 5

    def kill(self) -> None:
        """End it and all that it started, at once."""
        kill_group(self.process)

    def clean_up(self, *, keep_links: bool = False) -> None:
        """Remove what it leaves on the disk, except its log."""
        self.spec.socket_path.unlink(missing_ok=True)
        if not keep_links:
            shutil.rmtree(self.folder / "model", ignore_errors=True)

    def why_it_ended(self, status: int) -> Failure:
        """Put its end into a code and words, without the paths of this machine."""
        if self.failure is not None:
            return self.failure
        if status < 0:
            return Failure("killed", f"signal {-status} ({signal.Signals(-status).name})")
        return Failure("engine_broke", f"exit status {status}")

    def _lay_out(self, replica: Replica) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.spec.socket_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.spec.socket_path.unlink(missing_ok=True)
        materialise(replica.version, self.spec.model_dir)
        (self.folder / "spec.json").write_text(self.spec.model_dump_json())

    def _read(self, pipe: IO[bytes], hear: Any) -> None:
        with pipe, (self.folder / "engine.log").open("ab") as file:
            while raw := pipe.readline(1 << 16):
                file.write(raw)
                file.flush()
                hear(raw.decode("utf-8", "replace").rstrip())

    def _await_end(self) -> None:
        # It stays to be waited for: whoever asks how it ended still meets it under its number.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self._ring()

    def _hear_line(self, line: str) -> None:
        self.tail.append(line)

    def _hear_state(self, line: str) -> None:
        try:
            value = json.loads(line)
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        if "message" in value:
            self._fail(value)
        self.has_spoken.set()
        self._ring()

    def _fail(self, error: dict[str, Any]) -> None:
        words = str(error.get("message", "")).replace(f"{self.spec.model_dir}/", "")
        code = {"HashMismatch": "checksum", "SpecError": "bad_spec"}.get(str(error.get("code")), "")
        is_model = str(error.get("code")) in ("CheckpointError", "FormatError")
        self.failure = Failure(code or ("bad_model" if is_model else "engine_broke"), words[:500])
