"""Pages: the live board of a deployment."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from accounts.access import Role, role_required
from common import figures
from deployments.domains import shown_domains
from deployments.models import Deployment
from deployments.selectors import deployment_get, deployments_of, standing_of
from deployments.sentences import event_lamp, event_sentence
from telemetry import balance, words
from telemetry.axes import axes_of
from telemetry.boards import window_from_rows
from telemetry.selectors import routing_of_window, version_shown

HISTORY_S = 3600
MARKED = ("promoted", "replica_crashed", "replica_failed", "rolled_back", "stopped", "node_silent")
HOT = balance.HOT


@role_required(Role.VIEWER)
@require_GET
def live(request: HttpRequest) -> HttpResponse:
    """The board of the deployment that serves and was changed last."""
    found = list(deployments_of(request.caller.team))  # type: ignore[attr-defined]
    if not found:
        return render(request, "telemetry/none.html", {"sentence": _(words.NOTHING_SERVES)})
    serving = [one for one in found if one.live_version_id is not None]
    return redirect("telemetry:board", (serving or found)[0].pk)


@role_required(Role.VIEWER)
@require_GET
def board(request: HttpRequest, pk: int) -> HttpResponse:
    """Who carries too much, who sleeps, since when?"""
    team = request.caller.team  # type: ignore[attr-defined]
    deployment = deployment_get(team, pk)
    history = routing_of_window(deployment, HISTORY_S)
    context = {
        "deployment": deployment,
        "deployments": list(deployments_of(team)),
        "standing": standing_of(deployment),
        "verdict": verdict_of(deployment),
        "domains": shown_domains(deployment),
        "marks": marks_of(deployment, history["from_s"]),
        "history": {key: history[key] for key in ("from_s", "to_s", "resolution_s", "series")},
    }
    return render(request, "telemetry/board.html", context)


def verdict_of(deployment: Deployment) -> dict[str, str]:
    """The board's answer for its first paint; the browser keeps it true afterwards."""
    version = version_shown(deployment)
    if axes_of(deployment, version).is_dense:
        return {"state": "off", "strong": _(words.DENSE), "rest": _(words.DENSE_REST), "more": "layout"}
    if version is None:
        return {
            "state": "off",
            "strong": _(words.NO_ENGINE),
            "rest": _(words.NO_ENGINE_REST),
            "more": "deployment",
        }
    cube = window_from_rows(deployment.pk, version, int(time.time())).total().cube
    load_LE = cube.load_LE()
    hot = balance.hottest(cube, load_LE)
    if hot is None:
        return {"state": "off", "strong": _(words.QUIET), "rest": _(words.QUIET_REST), "more": "playground"}
    asleep = len(balance.asleep(cube, load_LE))
    if hot.ratio > HOT:
        by_asleep = (words.HOT, words.HOT_ONE_ASLEEP, words.HOT_ASLEEP)
    else:
        by_asleep = (words.LEVEL, words.LEVEL_ONE_ASLEEP, words.LEVEL_ASLEEP)
    strong = _(by_asleep[min(asleep, 2)]).format(
        layer=hot.layer, expert=hot.expert, ratio=figures.number(hot.ratio, 1), count=figures.number(asleep)
    )
    return {
        "state": "caution" if hot.ratio > HOT or asleep else "ok",
        "strong": strong,
        "rest": "",
        "more": "where",
    }


def marks_of(deployment: Deployment, since_s: int) -> list[dict[str, Any]]:
    """What happened to the deployment in the time that the history line shows, newest first."""
    since = dt.datetime.fromtimestamp(since_s, dt.UTC)
    events = deployment.events.filter(kind__in=MARKED, at__gte=since).order_by("-id")[:8]
    return [
        {"t_s": int(one.at.timestamp()), "at": one.at, "lamp": event_lamp(one), "text": event_sentence(one)}
        for one in events
    ]
