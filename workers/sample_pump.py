"""Carries what one engine counts to the stream. What could not be sent is not lost: the next totals hold it."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from pathlib import Path
from typing import Any

import redis
from django.conf import settings

from deployments.models import Replica
from telemetry.sample import GAUGES, MAX_ENTRIES, STREAM, Sample, Totals
from workers.engine_http import LineStream

log = logging.getLogger(__name__)
# An engine speaks once a second at least.
SILENCE_S = 10.0
RETRY_S = 0.2
LAST_WORDS_S = 2.0


class SamplePump(threading.Thread):
    """One engine's way to the stream."""

    def __init__(self, replica: Replica, epoch: int, socket_path: Path) -> None:
        super().__init__(name=f"samples-{replica.pk}", daemon=True)
        self.replica, self.epoch, self.socket_path = replica, epoch, socket_path
        self.redis = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)
        self.newest: Sample | None = None
        self.sent_seq = 0
        self._totals = Totals()
        self._seq = 0
        self._stopping = threading.Event()
        self._ending = threading.Event()
        self._stream: LineStream | None = None

    def run(self) -> None:
        """Read and send until the engine ends or `stop`."""
        while not self._stopping.is_set():
            try:
                self._read()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self._stopping.is_set() and not self._ending.is_set():
                    log.info("samples of replica %s broke off: %s", self.replica.pk, error)
            if self._ending.is_set():
                break
            self._stopping.wait(RETRY_S)
        self._send_last()
        self.redis.close()

    def stop(self) -> None:
        """End at once."""
        self._stopping.set()
        if self._stream is not None:
            self._stream.close()

    def end_with_engine(self) -> None:
        """When the engine closes the stream, do not open it again."""
        self._ending.set()

    def finish(self) -> None:
        """The engine has ended: read what it still said, send it, and end."""
        self._ending.set()
        self.join(timeout=LAST_WORDS_S + 1)
        self.stop()

    def _read(self) -> None:
        self._stream = LineStream(self.socket_path, "/samples?cumulative=1", SILENCE_S)
        try:
            for line in self._stream:
                self._note(line)
                self._send()
        finally:
            self._stream.release()

    def _note(self, line: dict[str, Any]) -> None:
        self._seq += 1
        self.newest = Sample(
            deployment=self.replica.deployment_id,
            version=self.replica.version_id,
            replica=self.replica.pk,
            epoch=self.epoch,
            seq=self._seq,
            t_ms=line["t_ms"],
            total=self._totals.read(line),
            gauges={name: line[name] for name in GAUGES},
        )

    def _send(self) -> bool:
        sample = self.newest
        if sample is None or sample.seq == self.sent_seq:
            return True
        try:
            self.redis.xadd(STREAM, sample.entry(), maxlen=MAX_ENTRIES, approximate=True)
        except redis.RedisError as error:
            log.warning("samples of replica %s wait for Valkey: %s", self.replica.pk, error)
            return False
        self.sent_seq = sample.seq
        return True

    def _send_last(self) -> None:
        deadline = time.monotonic() + LAST_WORDS_S
        while not self._send() and time.monotonic() < deadline and not self._stopping.is_set():
            self._stopping.wait(RETRY_S)
