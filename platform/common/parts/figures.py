"""Numbers with their units, small lines, bars and times."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from common import figures
from common.parts.render import render
from common.told import told

register = template.Library()


@register.simple_block_tag
def kpis(content: SafeString, label: str = "") -> SafeString:
    """The strip that holds `{% kpi %}`s."""
    return format_html('<dl class="kpis" aria-label="{}">{}</dl>', label or gettext("Key figures"), content)


@register.simple_tag
def kpi(
    label: str,
    value: object,
    unit: str = "",
    note: str = "",
    spark: Iterable[float] | None = None,
    key: str = "",
) -> SafeString:
    """A number that leads, its unit that follows, a note and a small line; `key` lets a live module write it."""
    return render("kpi.html", label=label, value=value, unit=unit, note=note, spark=sparkline(spark), key=key)


@register.simple_tag
def sparkline(values: Iterable[float] | None, width: int = 52) -> SafeString:
    """A small line with a lamp at its end; nothing when there is no history."""
    points = [float(value) for value in values or ()]
    if len(points) < 2:
        return mark_safe("")
    path, x, y = figures.spark_path(points, width)
    return render("spark.html", path=path, x=f"{x:.1f}", y=f"{y:.1f}", width=width)


@register.simple_tag
def bar(value: float, of: float, limit: float | None = None, kind: str = "", label: str = "") -> SafeString:
    """One bar on its bed, with a mark at the limit."""
    scale = 100 / of if of else 0
    return render(
        "bar.html", width=f"{max(0.0, min(100.0, value * scale)):.2f}", kind=kind, label=label,
        mark=None if limit is None else f"{max(0.0, min(99.5, limit * scale - 0.25)):.2f}",
    )  # fmt: skip


@register.simple_tag
def progress(value: float | None, of: float = 1.0, label: str = "") -> SafeString:
    """How far a long thing is; None means that it cannot be known."""
    if value is None:
        return format_html('<progress class="progress" aria-label="{}"></progress>', label)
    return format_html(
        '<progress class="progress" value="{}" max="{}" aria-label="{}"></progress>', value, of, label
    )


@register.simple_tag
def legend(kind: str = "heat") -> SafeString:
    """The scale of a heat board ("heat", anchored at 1.0) or of shares ("seq")."""
    return render("legend.html", kind=kind)


def _with_unit(parts: tuple[str, str]) -> SafeString:
    figure, unit = parts
    return format_html('{}<span class="unit">{}</span>', figure, unit) if unit else format_html("{}", figure)


@register.simple_tag(name="bytes")
def bytes_tag(size: float | None) -> SafeString:
    """A size with its unit set small."""
    return _with_unit(figures.bytes_parts(size))


@register.simple_tag(name="compact")
def compact_tag(value: float | None) -> SafeString:
    """A large count: 134.5 M, 1.35 亿."""
    return _with_unit(figures.compact_parts(value))


@register.simple_tag(name="number")
def number_tag(value: float | str | None, digits: int = 0, unit: str = "") -> SafeString:
    """A number with its unit set small."""
    return _with_unit((figures.number(value, digits), unit if value not in (None, "") else ""))


@register.simple_tag(name="ago")
def ago_tag(moment: dt.datetime | None) -> SafeString:
    """How long since, with the exact time in the tooltip; boot.js keeps it fresh."""
    if moment is None:
        return mark_safe(figures.MISSING)
    local = timezone.localtime(moment)
    return format_html(
        '<time datetime="{}" title="{}" data-ago>{}</time>', moment.isoformat(), f"{local:%Y-%m-%d %H:%M:%S %Z}",
        figures.ago(moment),
    )  # fmt: skip


@register.simple_tag(name="clock")
def clock_tag(moment: dt.datetime | None) -> SafeString:
    """14:06, with the zone in the tooltip."""
    if moment is None:
        return mark_safe(figures.MISSING)
    local = timezone.localtime(moment)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        f"{local:%Y-%m-%d %H:%M:%S %Z}",
        figures.clock(moment),
    )


@register.filter(name="bytes")
def bytes_filter(size: float | None) -> str:
    """A size as plain text, for sentences."""
    return figures.joined(figures.bytes_parts(size))


@register.filter(name="compact")
def compact_filter(value: float | None) -> str:
    """A large count as plain text."""
    return figures.joined(figures.compact_parts(value))


@register.filter(name="number")
def number_filter(value: float | None, digits: int = 0) -> str:
    """A number as plain text."""
    return figures.number(value, digits)


register.filter("percent", figures.percent)
register.filter("told", told)
register.filter("duration", figures.duration)
register.filter("ago", figures.ago)
register.filter("clock", figures.clock)


@register.filter
def details(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """The names and values of a mapping as people write them; what is empty is left out, nought and no are not."""
    return [(name, figures.plain(value)) for name, value in values.items() if value not in (None, "", [], {})]


@register.filter
def listed(entries: Iterable[object], before: str = "") -> str:
    """Entries of a list as text, each with the same letters before it."""
    return figures.listed(f"{before}{entry}" for entry in entries)
