"""What boards and the API read: windows of rollups, summed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from common.errors import Invalid
from deployments.models import Deployment
from registry.models import ModelVersion
from telemetry import balance, latency
from telemetry.boards import Window, picture, shown_version, window_from_rows
from telemetry.cube import Cube, Shape
from telemetry.models import Board, Rollup
from telemetry.retention import KEPT_S
from telemetry.tally import Tally

MAX_POINTS = 360
LONGEST_S = KEPT_S[60]


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
        raise Invalid(
            _("A window lies between 1 s and %(longest)s s.") % {"longest": LONGEST_S},
            fields={"window": "1…"},
        )
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
    total, points = Tally(), []
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
        "total": int(cube.counts_PNLE.sum()),
        "prompt_tokens": total.prompt_tokens,
        "output_tokens": total.output_tokens,
        "reused_tokens": total.reused_tokens,
        **balance.summary(cube),
        "first_token_ms": percentiles(total.first_token),
        "inter_token_ms": percentiles(total.inter_token),
        "series": points,
    }


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


def shape_of_version(deployment: Deployment, version_id: int | None) -> Shape:
    """Return the axes of a version's counts, as its specification says; a dense one has none."""
    version = ModelVersion.objects.filter(pk=version_id or deployment.desired_version_id).first()
    moe = version.spec.get("moe") if version else None
    if not moe:
        return Shape()
    codes = ("", *(domain["code"] for domain in deployment.domains.get("domains", ())))
    return Shape(codes, tuple(moe["moe_layers"]), int(moe["num_experts"]))


def board_snapshot(deployment: Deployment) -> dict[str, Any]:
    """Return what the board shows now, in the shape of a frame."""
    now = time.time()
    board = Board.objects.filter(deployment=deployment).first()
    version = version_shown(deployment)
    window = window_from_rows(deployment.pk, version, int(now)) if version else Window()
    # A quiet board has its shape all the same: every lamp is there, and none is lit.
    window.add(int(now), Tally(Cube.empty(shape_of_version(deployment, version))))
    return {
        "seq": board.seq if board else 0,
        "t_ms": int(now * 1000),
        "version": version,
        **picture(window, board.gauges if board else {}, int(now)),
    }
