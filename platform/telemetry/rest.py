"""REST: where the tokens of a deployment went."""

from __future__ import annotations

import time
from typing import Any

from django.http import HttpResponse
from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.permissions import READ_ONLY, TeamScoped
from common.closed_requests import takes_query
from common.errors import Invalid
from common.figures import listed
from common.query_values import whole_number
from deployments.selectors import deployment_get
from telemetry.metrics import registry_of
from telemetry.selectors import routing_of_window

NAMED_WINDOWS = {"1m": 60, "10m": 600, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800}
WINDOW = OpenApiParameter(
    "window", str, description="Seconds, or one of 1m, 10m, 1h, 6h, 24h, 7d. Default 1m."
)
VERSION = OpenApiParameter("version", int, description="A model version; default the live one.")
_whole, _share, _list = serializers.IntegerField, serializers.FloatField, serializers.ListField


def _percentiles(name: str) -> Any:
    fields = {one: _share(allow_null=True) for one in ("p50", "p95", "p99")}
    return inline_serializer(name, {**fields, "count": _whole()})


POINT: dict[str, serializers.Field] = {
    "t_s": _whole(),
    "output_per_s": _share(),
    "prompt_per_s": _share(),
    "max_vio": _share(allow_null=True),
    "running": _whole(),
    "waiting": _whole(),
}
CELL: dict[str, serializers.Field] = {"layer": _whole(), "expert": _whole()}
RoutingOut = inline_serializer(
    "Routing",
    {
        "deployment": _whole(),
        "version": _whole(allow_null=True),
        "from_s": _whole(),
        "to_s": _whole(),
        "resolution_s": _whole(),
        "phases": _list(child=serializers.CharField()),
        "domains": _list(
            child=serializers.CharField(allow_blank=True), help_text="The first, empty: none named."
        ),
        "layers": _list(child=_whole()),
        "num_experts": _whole(),
        "counts": _list(
            child=_list(child=_list(child=_list(child=_whole()))),
            help_text="[phase][domain][layer][expert]; a token counts once for each of its top-k experts.",
        ),
        "reach": _list(
            child=_list(child=_list(child=_whole(), min_length=2, max_length=2)),
            help_text="[phase][domain]: how often a token passed an expert layer, and in how many of those one of its top-k "
            "experts was its domain's own.",
        ),
        "total": _whole(help_text="All assignments."),
        "prompt_tokens": _whole(),
        "output_tokens": _whole(),
        "reused_tokens": _whole(help_text="Prompt tokens that the prefix cache spared; no expert saw them."),
        "max_vio": _share(
            allow_null=True, help_text="Busiest expert over the mean, minus one; mean of the layers."
        ),
        "entropy": _share(allow_null=True),
        "hottest": inline_serializer("HottestCell", {**CELL, "ratio": _share()}, allow_null=True),
        "asleep": inline_serializer("AsleepCell", CELL, many=True),
        "num_asleep": _whole(),
        "domain_shares": serializers.DictField(
            child=_list(child=_share()),
            help_text="For each domain the share of its assignments that each expert got.",
        ),
        "mapped_share": _share(
            allow_null=True,
            help_text="Share to own experts: of the tokens of all domains, those whose top-k held an expert of their own; "
            "mean of the layers.",
        ),
        "mapped_share_by_domain": serializers.DictField(
            child=_share(), help_text="The share to own experts of each domain that had tokens."
        ),
        "first_token_ms": _percentiles("FirstToken"),
        "inter_token_ms": _percentiles("InterToken"),
        "series": inline_serializer("RoutingPoint", POINT, many=True),
    },
)


class RoutingView(TeamScoped, APIView):
    """The routing of one deployment over a window that ends now."""

    grants = READ_ONLY

    @takes_query(WINDOW, VERSION)
    @extend_schema(operation_id="deployments_routing_retrieve", responses=RoutingOut)
    def get(self, request: Request, pk: int) -> Response:
        """Counts by phase, domain, layer and expert, balance, latencies, and a series."""
        deployment = deployment_get(self.caller.team, pk)
        version = whole_number(request, "version", default=0)
        window = window_seconds(request.query_params.get("window", "1m"))
        return Response(routing_of_window(deployment, window, version or None))


class MetricsView(TeamScoped, APIView):
    """Metrics of the token's team, in Prometheus' text format. Give Prometheus a token with the scope `read`."""

    grants = READ_ONLY

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        """Bounded aggregates of every deployment."""
        text = generate_latest(registry_of(self.caller.team, int(time.time())))
        return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)


def window_seconds(text: str) -> int:
    """Read a window: seconds, or a named one."""
    if text in NAMED_WINDOWS:
        return NAMED_WINDOWS[text]
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        reason = _("A window is a number of seconds or one of %(known)s.") % {"known": listed(NAMED_WINDOWS)}
        raise Invalid(reason, fields={"window": reason})
    return int(text)
