"""What boards and the API read: windows of rollups, summed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from common.errors import Invalid
from deployments.models import Deployment
from telemetry import balance, latency
from telemetry.axes import axes_of
from telemetry.boards import GAUGE_LIFE_S, Window, picture, shown_version, window_from_rows
from telemetry.cube import Cube
from telemetry.models import Board, Rollup
from telemetry.retention import KEPT_S
from telemetry.sample import GAUGES
from telemetry.tally import Tally

MAX_POINTS = 360
LONGEST_S = KEPT_S[60]
# What an engine that holds few experts is told of those before it.
USES_S = 86_400


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time at one resolution; both ends are whole buckets."""

    start_s: int
    end_s: int
    resolution_s: int

    @property
    def seconds(self) -> int:
        """How long it is."""
        return self.end_s - self.start_s


def span_of(window_s: int, now_s: int | None = None) -> Span:
    """Return the last `window_s` seconds at the finest resolution that is still kept and not too long."""
    if not 1 <= window_s <= LONGEST_S:
        reason = _("A window lies between 1 s and %(longest)s s.") % {"longest": LONGEST_S}
        raise Invalid(reason, fields={"window": reason})
    now = int(time.time()) if now_s is None else now_s
    resolution = next(
        (one for one in (1, 10, 60) if window_s <= KEPT_S[one] and window_s / one <= MAX_POINTS), 60
    )
    end = (now // resolution + 1) * resolution
    return Span(end - -(-window_s // resolution) * resolution, end, resolution)


def rollups_in(deployment: Deployment, span: Span, version_id: int | None) -> list[Rollup]:
    """Return the buckets of a span, oldest first."""
    found = Rollup.objects.filter(
        deployment=deployment,
        resolution_s=span.resolution_s,
        start_s__gte=span.start_s,
        start_s__lt=span.end_s,
    )
    if version_id is not None:
        found = found.filter(version_id=version_id)
    return list(found.order_by("start_s"))


def version_shown(deployment: Deployment) -> int | None:
    """The live version, else the last one that counted anything."""
    last = (
        Rollup.objects.filter(deployment=deployment)
        .order_by("-start_s")
        .values_list("version_id", flat=True)
        .first()
    )
    return shown_version(deployment, [] if last is None else [last])


def routing_of_window(deployment: Deployment, window_s: int, version_id: int | None = None) -> dict[str, Any]:
    """Return where the tokens of a window went, with figures and a series, as JSON."""
    span = span_of(window_s)
    version = version_id or version_shown(deployment)
    rows = rollups_in(deployment, span, version) if version else []
    # Its axes are there in a quiet window too.
    total, points = Tally(Cube.empty(axes_of(deployment, version).shape)), []
    for row in rows:
        tally = Tally.of_row(row)
        total = total.plus(tally)
        points.append(_point(row, tally, span.resolution_s))
    cube = total.cube
    return {
        "deployment": deployment.pk,
        "version": version,
        "from_s": span.start_s,
        "to_s": span.end_s,
        "resolution_s": span.resolution_s,
        **cube.heading(),
        "counts": cube.counts_PNLE.tolist(),
        "reach": cube.reach_PN2.tolist(),
        "total": int(cube.counts_PNLE.sum()),
        "prompt_tokens": total.prompt_tokens,
        "output_tokens": total.output_tokens,
        "reused_tokens": total.reused_tokens,
        **balance.summary(cube),
        "first_token_ms": percentiles(total.first_token),
        "inter_token_ms": percentiles(total.inter_token),
        "series": points,
    }


def expert_uses(deployment: Deployment, version_id: int) -> list[list[int]]:
    """How often each expert of a version was used in the last day, by layer; empty where nothing was counted."""
    total = Tally()
    for row in rollups_in(deployment, span_of(USES_S), version_id):
        total = total.plus(Tally.of_row(row))
    used: list[list[int]] = total.cube.load_LE().tolist()
    return used if any(map(any, used)) else []


def percentiles(histogram: latency.Histogram) -> dict[str, float | int | None]:
    """p50, p95, p99 in ms, and how many there were."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found: dict[str, float | int | None] = {
        name: latency.percentile(histogram, share) for name, share in shares.items()
    }
    return {**found, "count": int(histogram.sum())}


def _point(row: Rollup, tally: Tally, resolution_s: int) -> dict[str, Any]:
    vio = balance.max_violation(tally.cube.load_LE())
    return {
        "t_s": row.start_s,
        "output_per_s": round(tally.output_tokens / resolution_s, 2),
        "prompt_per_s": round(tally.prompt_tokens / resolution_s, 2),
        "max_vio": None if vio is None else round(vio, 4),
        "running": row.running,
        "waiting": row.waiting,
    }


def board_snapshot(deployment: Deployment) -> dict[str, Any]:
    """Return what the board shows now, in the shape of a frame."""
    now = time.time()
    board = Board.objects.filter(deployment=deployment).first()
    version = version_shown(deployment)
    window = window_from_rows(deployment.pk, version, int(now)) if version else Window()
    return {
        "seq": board.seq if board else 0,
        "t_ms": int(now * 1000),
        "sampled_ms": board.sampled_ms if board else None,
        "version": version,
        **picture(window, gauges_of(board, now), int(now), axes_of(deployment, version)),
    }


def gauges_of(board: Board | None, now_s: float) -> dict[str, int]:
    """The gauges of a board, as long as its engines still speak; what an engine said before it fell silent is not now."""
    if board is None or board.at is None or now_s - board.at.timestamp() > GAUGE_LIFE_S:
        return {**dict.fromkeys(GAUGES, 0), "engines": 0}
    return dict(board.gauges)
