"""Live boards: one frame a deployment, each the whole picture of the last minute, so that a lost one does no harm.

A frame says when it was made (`t_ms`) and when the newest sample that it holds was taken (`sampled_ms`, by the engine's
clock); a board is as old as its newest sample, whoever sends it again.
"""

from __future__ import annotations

import base64
import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from django.utils import timezone
from numpy.typing import NDArray

from deployments.models import Deployment
from telemetry import balance, latency
from telemetry.axes import Axes, axes_of
from telemetry.cube import Cube
from telemetry.models import Board, Rollup
from telemetry.sample import GAUGES
from telemetry.tally import Tally

if TYPE_CHECKING:
    from telemetry.rollups import Bucket, BucketKey

KIND = "board"
WINDOW_S = 60
RATE_S = 5
# A gauge of an engine that said nothing for so long is not shown.
GAUGE_LIFE_S = 5.0
# Above this many cells a frame shows all phases together, and then all domains.
MAX_FRAME_CELLS = 1 << 16


def topic_of(deployment_id: int) -> str:
    """The live topic of a board."""
    return f"{KIND}:{deployment_id}"


class Window:
    """The last minute of one version, second by second."""

    def __init__(self, seconds: dict[int, Tally] | None = None) -> None:
        self.seconds = seconds or {}

    def add(self, start_s: int, tally: Tally) -> None:
        """Add to one second."""
        known = self.seconds.get(start_s)
        self.seconds[start_s] = tally if known is None else known.plus(tally)

    def trim(self, now_s: int) -> None:
        """Forget what is older than the window."""
        for start in [start for start in self.seconds if start <= now_s - WINDOW_S]:
            del self.seconds[start]

    def total(self) -> Tally:
        """All of it."""
        total = Tally()
        for start in sorted(self.seconds):
            total = total.plus(self.seconds[start])
        return total

    def rate(self, now_s: int) -> dict[str, float]:
        """Tokens a second over the last whole seconds."""
        recent = [tally for start, tally in self.seconds.items() if now_s - RATE_S <= start < now_s]
        return {
            "prompt": round(sum(one.prompt_tokens for one in recent) / RATE_S, 1),
            "output": round(sum(one.output_tokens for one in recent) / RATE_S, 1),
        }


def window_from_rows(deployment_id: int, version_id: int, now_s: int) -> Window:
    """Read the last minute from PostgreSQL."""
    rows = Rollup.objects.filter(
        deployment_id=deployment_id, version_id=version_id, resolution_s=1, start_s__gt=now_s - WINDOW_S
    )
    return Window({row.start_s: Tally.of_row(row) for row in rows})


def picture(window: Window, gauges: dict[str, Any], now_s: int, axes: Axes) -> dict[str, Any]:
    """What a board shows, as JSON. A quiet board has its axes all the same: every lamp is there, and none is lit."""
    window.trim(now_s)
    total = Tally(Cube.empty(axes.shape)).plus(window.total())
    shown = total.cube
    counts = shown.counts_PNLE
    phases, domains = shown.heading()["phases"], list(shown.shape.domains)
    if counts.size > MAX_FRAME_CELLS:
        counts, phases = counts.sum(0, keepdims=True), ["all"]
    if counts.size > MAX_FRAME_CELLS:
        counts, domains = counts.sum(1, keepdims=True), ["*"]
    return {
        "window_s": WINDOW_S,
        "phases": phases,
        "domains": domains,
        "layers": list(shown.shape.layers),
        "num_layers": axes.num_layers,
        "num_experts": shown.shape.num_experts,
        "counts": _words(counts),
        "reach_domains": list(shown.shape.domains),
        "reach": _words(shown.reach_PN2),
        "prompt_tokens": total.prompt_tokens,
        "output_tokens": total.output_tokens,
        "reused_tokens": total.reused_tokens,
        "rate": window.rate(now_s),
        "max_vio": balance.summary(shown)["max_vio"],
        "first_token": _latency(total.first_token),
        "inter_token": _latency(total.inter_token),
        "gauges": gauges,
    }


def _words(array: NDArray[np.int64]) -> str:
    return base64.b64encode(array.clip(max=2**32 - 1).astype("<u4").tobytes()).decode()


def _latency(histogram: latency.Histogram) -> dict[str, float | int | None]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    figures: dict[str, float | int | None] = {
        name: latency.percentile(histogram, share) for name, share in shares.items()
    }
    return {**figures, "count": int(np.sum(histogram))}


class BoardWriter:
    """Keeps the windows of boards in memory; what it does not know it reads."""

    def __init__(self) -> None:
        self.windows: dict[tuple[int, int], Window] = {}
        self.gauges: dict[int, dict[int, tuple[float, dict[str, int]]]] = defaultdict(dict)

    def advance(self, buckets: dict[BucketKey, Bucket], *, is_shown: bool = True) -> list[tuple[str, bytes]]:
        """Add a batch inside its transaction; return the frames to publish when it is committed, none where nobody
        would see them."""
        frames = []
        changed: dict[int, Tally] = {}
        sampled_ms: dict[int, int] = {}
        for (deployment, resolution, start, version), bucket in sorted(buckets.items()):
            if resolution != 1:
                continue
            self._window(deployment, version, int(time.time())).add(start, bucket.tally)
            changed[deployment] = changed.get(deployment, Tally()).plus(bucket.tally)
            sampled_ms[deployment] = max(sampled_ms.get(deployment, 0), bucket.sampled_ms)
            for replica, gauges in bucket.gauges.items():
                self.gauges[deployment][replica] = (time.monotonic(), gauges)
        for deployment, tally in changed.items():
            board = self._advance_row(deployment, tally, sampled_ms[deployment])
            if is_shown:
                frames.append((topic_of(deployment), self._frame(board)))
        self._forget_old(int(time.time()))
        return frames

    def _forget_old(self, now_s: int) -> None:
        for key, window in list(self.windows.items()):
            window.trim(now_s)
            if not window.seconds:
                del self.windows[key]

    def _window(self, deployment: int, version: int, now_s: int) -> Window:
        key = (deployment, version)
        if key not in self.windows:
            self.windows[key] = window_from_rows(deployment, version, now_s)
        return self.windows[key]

    def _advance_row(self, deployment_id: int, tally: Tally, sampled_ms: int) -> Board:
        """Write the board's head, with the next number."""
        found = Board.objects.select_for_update().filter(deployment_id=deployment_id).first()
        board = found or Board.objects.select_for_update().get_or_create(deployment_id=deployment_id)[0]
        columns = {} if tally.is_empty else Tally.of_row(board).plus(tally).columns()
        board.seq += 1
        board.sampled_ms = max(sampled_ms, board.sampled_ms or 0)
        board.gauges = self._gauges(deployment_id)
        Board.objects.filter(pk=board.pk).update(
            **columns, seq=board.seq, at=timezone.now(), sampled_ms=board.sampled_ms, gauges=board.gauges
        )
        return board

    def _frame(self, board: Board) -> bytes:
        now, deployment = time.time(), board.deployment
        version = shown_version(deployment, [key[1] for key in self.windows if key[0] == deployment.pk])
        window = self.windows.get((deployment.pk, version or 0), Window())
        shown = picture(window, board.gauges, int(now), axes_of(deployment, version))
        head = {"type": "event", "seq": board.seq, "t_ms": int(now * 1000), "sampled_ms": board.sampled_ms}
        head["version"] = version
        return json.dumps({**head, **shown}, separators=(",", ":")).encode()

    def _gauges(self, deployment_id: int) -> dict[str, int]:
        fresh = {
            replica: (at, gauges)
            for replica, (at, gauges) in self.gauges[deployment_id].items()
            if time.monotonic() - at < GAUGE_LIFE_S
        }
        self.gauges[deployment_id] = fresh
        sums = dict.fromkeys(GAUGES, 0)
        for _at, gauges in fresh.values():
            for name in sums:
                sums[name] += gauges[name]
        return {**sums, "engines": len(fresh)}


def shown_version(deployment: Deployment, known: list[int]) -> int | None:
    """The version whose counts a board shows: the live one, else the last that counted anything."""
    return deployment.live_version_id or (max(known) if known else None)
