"""What packing weights in few bits cost, layer by layer: the errors of a report as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from common import figures

# Name in the report → what it is called.
COLUMNS: dict[str, str | Promise] = {
    "gate_up": gettext_lazy("Experts' gate and up"),
    "up": gettext_lazy("Experts' up"),
    "down": gettext_lazy("Experts' down"),
    "qkv_proj": gettext_lazy("Attention's QKV"),
    "o_proj": gettext_lazy("Attention's output"),
}
DIGITS = 2


@dataclass(frozen=True, slots=True)
class PackedErrors:
    """A table: one column a map, one row a layer."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


def packed_errors(report: Mapping[str, Any]) -> PackedErrors | None:
    """The table of a report of packing; None for others."""
    if report.get("kind") != "quantise":
        return None
    by_layer: dict[int, dict[str, Any]] = {}
    for row in (*_rows(report, "error"), *_rows(report, "attention_error")):
        by_layer.setdefault(row["layer"], {}).update(row)
    names = [name for name in COLUMNS if any(name in row for row in by_layer.values())]
    if not names:
        return None
    return PackedErrors(
        [str(COLUMNS[name]) for name in names],
        [
            (_("layer %(number)s") % {"number": layer}, [_said(row.get(name)) for name in names])
            for layer, row in sorted(by_layer.items())
        ],
    )


def packed_facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The means of experts and attention over layers and maps, and the error of the output map, where they are packed."""
    for name, title in (
        ("error", _("Relative error of the experts' weights")),
        ("attention_error", _("Relative error of attention's maps")),
    ):
        errors = [row[map_] for row in _rows(report, name) for map_ in row if map_ != "layer"]
        if errors:
            yield title, _said(sum(errors) / len(errors))
    if report.get("head_error") is not None:
        yield _("Relative error of the output map"), _said(report["head_error"])


def _rows(report: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in report.get(name) or [] if isinstance(row, dict) and "layer" in row]


def _said(error: float | None) -> str:
    return figures.percent(error, DIGITS)
