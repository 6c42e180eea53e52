"""How held-out logs were routed, layer by layer: the figures of a report as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from common import figures
from registry.measured import KIND

# Name in the report → what it is called, and its digits.
COLUMNS: dict[str, tuple[str | Promise, int]] = {
    "max_vio": ("MaxVio", 2),
    "max_vio_batch": (gettext_lazy("MaxVio, batch"), 2),
    "variation": ("CV", 2),
    "gini": (gettext_lazy("Gini"), 2),
    "jain": (gettext_lazy("Jain"), 2),
    "entropy": (gettext_lazy("Entropy"), 2),
    "dead_experts": (gettext_lazy("Asleep"), 0),
    "drop_rate": (gettext_lazy("Dropped"), 3),
    "margin": (gettext_lazy("Margin"), 2),
    "router_z": ("z", 2),
    "coactivation": (gettext_lazy("Chosen together, at most"), 2),
    "domain_specialisation": (gettext_lazy("Domain to one expert"), 2),
    "vocabulary_specialisation": (gettext_lazy("Token id to one expert"), 2),
    "agreement": (gettext_lazy("As before (Jaccard)"), 2),
    "saturation": (gettext_lazy("Kept of the choice"), 2),
}


# Of a version that is measured beside another.
BESIDE: dict[str, Promise] = {
    "agreement": gettext_lazy("As the other (Jaccard)"),
    "saturation": gettext_lazy("Kept of the other's choice"),
}


@dataclass(frozen=True, slots=True)
class Routed:
    """A table: one column a figure, one row for the mean and for each layer."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


def routed_table(report: Mapping[str, Any]) -> Routed | None:
    """The table of a tuning's or an operation's report; None where routing was not measured."""
    now, before = _routing(report.get("routing")), _routing(report.get("routing_before"))
    if isinstance(report.get("after"), dict):
        now, before = (_routing(_part(report, moment).get("routing")) for moment in ("after", "before"))
    if now is None:
        return None
    names = [name for name in COLUMNS if name in now["mean"]]
    is_beside = report.get("kind") == KIND
    rows = list(_rows(now, before, _("mean, the other") if is_beside else _("mean, before")))
    titles = {name: title for name, (title, _digits) in COLUMNS.items()} | (BESIDE if is_beside else {})
    return Routed(
        [str(titles[name]) for name in names],
        [(title, [_said(row.get(name), name) for name in names]) for title, row in rows],
    )


def _rows(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, before_title: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if before is not None:
        yield before_title, before["mean"]
    yield _("mean"), now["mean"]
    for row in now["layers"]:
        yield _("layer %(number)s") % {"number": row["layer"]}, row


def _part(report: Mapping[str, Any], moment: str) -> Mapping[str, Any]:
    found = report.get(moment)
    return found if isinstance(found, dict) else {}


def _routing(found: Any) -> Mapping[str, Any] | None:
    """The figures of routing, where they are such."""
    if not isinstance(found, dict) or not found.get("layers") or not isinstance(found.get("mean"), dict):
        return None
    return found


def _said(value: Any, name: str) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return figures.number(value, COLUMNS[name][1]) if is_number else figures.MISSING
