"""The console's parts: `{% load ui %}`. How to use each: docs/reference/ui-kit.md."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from django import template
from django.core.paginator import Page
from django.forms import BaseForm, BoundField
from django.template.context import Context
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.html import format_html, format_html_join, json_script
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from common import figures
from common.told import told

register = template.Library()

# Form and colour follow the meaning of a state, whatever app it belongs to.
LAMPS: Mapping[str, str] = {
    **dict.fromkeys(("ok", "ready", "serving", "succeeded", "active", "valid", "live", "online", "kept", "done"), "ok"),
    **dict.fromkeys(
        ("busy", "running", "claimed", "starting", "loading", "warming", "fetching", "validating", "importing",
         "cancelling", "pausing", "draining", "stopping", "scheduling", "resuming"), "busy"),
    **dict.fromkeys(("caution", "degraded", "paused", "waiting", "blocked", "stale", "partial"), "caution"),
    **dict.fromkeys(("danger", "failed", "error", "lost", "refused", "invalid", "rejected"), "danger"),
    **dict.fromkeys(("unknown", "silent"), "unknown"),
}  # fmt: skip
DOMAIN_COLOURS = 5
SENTENCE_GAP = re.compile(r"([。！？；：，])(</b>)?\s+")


def lamp_of(state: str) -> str:
    """The lamp (form and colour) of a state word; what is not named here is off."""
    return LAMPS.get(state, "off")


# -- lamps, verdicts, identifiers -------------------------------------------------------------


@register.simple_tag
def lampdot(state: str) -> SafeString:
    """Only the lamp; the word must stand beside it."""
    return format_html('<span class="lamp" data-state="{}" aria-hidden="true"></span>', lamp_of(state))


@register.simple_tag
def lamp(state: str, word: str = "", reason: str = "") -> SafeString:
    """A lamp with its word, and its reason when not well."""
    tail = format_html('<span class="reason">{}</span>', reason) if reason else ""
    return format_html('<span class="state">{}<span>{}</span>{}</span>', lampdot(state), word or state, tail)


@register.simple_tag(name="state")
def state_of(thing: Any, reason: str = "") -> SafeString:
    """The state of a model instance: `lamp` if it knows its own, else by its state word."""
    word = getattr(thing, "get_state_display", None)
    value = str(getattr(thing, "state", thing))
    return lamp(getattr(thing, "lamp", None) or value, word() if word else value, reason)


@register.simple_block_tag
def verdict(
    content: SafeString, state: str, more_url: str = "", more: str = "", id: str = "verdict"
) -> SafeString:
    """The page's answer in one sentence, with one lamp. Chinese sentences follow one another without a space."""
    if figures.is_chinese():
        content = mark_safe(SENTENCE_GAP.sub(r"\1\2", content))
    return _render("verdict.html", content=content, state=lamp_of(state), more_url=more_url, more=more, id=id)


@register.simple_tag
def berth(text: object, href: str = "") -> SafeString:
    """An identifier, set apart so that it is read and copied as a unit."""
    if href:
        return format_html('<a class="berth" href="{}">{}</a>', href, text)
    return format_html('<span class="berth">{}</span>', text)


@register.simple_tag
def copyable(text: object, label: str = "") -> SafeString:
    """An identifier with a button that copies it."""
    return _render("copyable.html", text=text, label=label)


@register.simple_tag
def domain_chip(code: str, name: str = "", colour: int | None = None) -> SafeString:
    """A business domain: three letters and a colour, then its name."""
    return format_html(
        '<span class="domain" data-colour="{}"><i aria-hidden="true">{}</i>{}</span>',
        domain_colour(colour), (code or "—")[:3].upper(), name or code,
    )  # fmt: skip


@register.filter
def domain_colour(colour: int | None) -> int:
    """The palette holds five; the code is never left out, so colours may come round again."""
    return 0 if not colour else (int(colour) - 1) % DOMAIN_COLOURS + 1


# -- structure --------------------------------------------------------------------------------


@register.simple_block_tag
def panel(content: SafeString, title: str, note: str = "", id: str = "", css: str = "") -> SafeString:
    """A line with its name engraved in it."""
    return _render("panel.html", content=content, title=title, note=note, id=id or _slug(title), css=css)


@register.simple_block_tag
def side(content: SafeString) -> SafeString:
    """What stands at the right end of a panel's line: links, a segment, a figure."""
    return format_html('<span class="side">{}</span>', content)


@register.simple_block_tag
def empty(content: SafeString, title: str) -> SafeString:
    """An empty place: what it is for, and what to do next."""
    return _render("empty.html", content=content, title=title)


@register.simple_block_tag
def banner(content: SafeString, state: str = "caution") -> SafeString:
    """A standing remark above a part of the page."""
    return format_html(
        '<div class="banner" data-state="{}" role="status">{}<div>{}</div></div>',
        lamp_of(state),
        lampdot(state),
        content,
    )


@register.simple_block_tag
def dialog(content: SafeString, id: str, title: str) -> SafeString:
    """A dialog; a button with data-open="ID" shows it, one with data-close closes it."""
    return _render("dialog.html", content=content, id=id, title=title, css="dialog")


@register.simple_block_tag
def drawer(content: SafeString, id: str, title: str) -> SafeString:
    """A dialog at the right edge, for forms."""
    return _render("dialog.html", content=content, id=id, title=title, css="drawer")


@register.simple_block_tag(takes_context=True)
def confirm(
    context: Context,
    content: SafeString,
    id: str,
    title: str,
    action: str,
    label: str,
    kind: str = "danger",
    keep: str = "",
) -> SafeString:
    """A question that names what survives, with a form that posts the answer."""
    return _render(
        "confirm.html", content=content, id=id, title=title, action=action, label=label, kind=kind, keep=keep,
        csrf_token=context.get("csrf_token"),
    )  # fmt: skip


@register.simple_block_tag
def tabs(content: SafeString, label: str) -> SafeString:
    """A row of `{% tab %}`s."""
    return format_html('<div class="tabs" role="tablist" aria-label="{}">{}</div>', label, content)


@register.simple_tag
def tab(id: str, label: str, selected: bool = False, count: int | None = None) -> SafeString:
    """One tab; its panel is `{% tabpanel id %}`."""
    return _render("tab.html", id=id, label=label, selected=selected, count=count)


@register.simple_block_tag
def tabpanel(content: SafeString, id: str, selected: bool = False) -> SafeString:
    """What a tab shows."""
    hidden = "" if selected else mark_safe(" hidden")
    return format_html(
        '<div role="tabpanel" id="{}" aria-labelledby="{}-tab" tabindex="0"{}>{}</div>',
        id,
        id,
        hidden,
        content,
    )


@register.simple_tag
def stations(steps: Iterable[Mapping[str, Any]], label: str, css: str = "") -> SafeString:
    """A run of stages: mappings with title, note, url, and state 'done', 'now' or 'next'."""
    return _render("stations.html", steps=list(steps), label=label, css=css)


# -- figures ----------------------------------------------------------------------------------


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
    return _render(
        "kpi.html", label=label, value=value, unit=unit, note=note, spark=sparkline(spark), key=key
    )


@register.simple_tag
def sparkline(values: Iterable[float] | None, width: int = 52) -> SafeString:
    """A small line with a lamp at its end; nothing when there is no history."""
    points = [float(value) for value in values or ()]
    if len(points) < 2:
        return mark_safe("")
    path, x, y = figures.spark_path(points, width)
    return _render("spark.html", path=path, x=f"{x:.1f}", y=f"{y:.1f}", width=width)


@register.simple_tag
def bar(value: float, of: float, limit: float | None = None, kind: str = "", label: str = "") -> SafeString:
    """One bar on its bed, with a mark at the limit."""
    scale = 100 / of if of else 0
    return _render(
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
    return _render("legend.html", kind=kind)


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


# -- forms and lists --------------------------------------------------------------------------


@register.simple_tag
def field(bound: BoundField, note: str = "", css: str = "") -> SafeString:
    """A form field: label, control, help, error, tied together for screen readers."""
    if bound.is_hidden:
        return mark_safe(str(bound) + str(bound.errors))
    kind = getattr(bound.field.widget, "input_type", "")
    return _render(
        "field.html", field=bound, note=note, css=css, is_box=kind == "checkbox", is_group=bound.use_fieldset
    )


@register.simple_tag
def fields(form: BaseForm, *names: str) -> SafeString:
    """The named fields of a form (all when none is named), after the form's own errors."""
    chosen = [form[name] for name in names] if names else list(form)
    return format_html(
        "{}{}", form_errors(form), format_html_join("", "{}", ((field(one),) for one in chosen))
    )


@register.simple_tag
def form_errors(form: BaseForm) -> SafeString:
    """What is wrong with the form as a whole."""
    errors = form.non_field_errors() if form.is_bound else []
    return _render("form_errors.html", errors=errors) if errors else mark_safe("")


@register.simple_tag(takes_context=True)
def pager(context: Context, page: Page, key: str = "page") -> SafeString:
    """Earlier and later, and where one is; nothing when all fits on one page."""
    if page.paginator.num_pages < 2:
        return mark_safe("")
    query = context["request"].GET.copy() if "request" in context else None

    def address(number: int) -> str:
        if query is None:
            return f"?{key}={number}"
        query[key] = str(number)
        return f"?{query.urlencode()}"

    earlier = address(page.previous_page_number()) if page.has_previous() else ""
    later = address(page.next_page_number()) if page.has_next() else ""
    return _render("pager.html", page=page, earlier=earlier, later=later)


@register.simple_tag
def js_words(*modules: str) -> SafeString:
    """The translations that JavaScript needs: each module has a tuple WORDS of message ids."""
    words = {msgid: gettext(msgid) for module in modules for msgid in importlib.import_module(module).WORDS}
    return json_script({msgid: text for msgid, text in words.items() if text != msgid}, "words")


@register.filter
def as_json(value: object) -> str:
    """A value for a data attribute; the template escapes it."""
    return json.dumps(value, separators=(",", ":"), default=str, ensure_ascii=False)


def _slug(title: str) -> str:
    return "p-" + "".join(mark if mark.isalnum() else "-" for mark in str(title).lower())


def _render(name: str, **values: Any) -> SafeString:
    return render_to_string(f"ui/{name}", values)
