"""What a page is made of: panels, banners, dialogs, tabs, stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django import template
from django.template.context import Context
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from common.parts.render import render, slug
from common.parts.signs import lamp_of, lampdot

register = template.Library()


@register.simple_block_tag
def panel(content: SafeString, title: str, note: str = "", id: str = "", css: str = "") -> SafeString:
    """A line with its name engraved in it."""
    return render("panel.html", content=content, title=title, note=note, id=id or slug(title), css=css)


@register.simple_block_tag
def side(content: SafeString) -> SafeString:
    """What stands at the right end of a panel's line: links, a segment, a figure."""
    return format_html('<span class="side">{}</span>', content)


@register.simple_block_tag
def empty(content: SafeString, title: str) -> SafeString:
    """An empty place: what it is for, and what to do next."""
    return render("empty.html", content=content, title=title)


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
def dialog(content: SafeString, id: str, title: str, opened: object = False) -> SafeString:
    """A dialog; a button with data-open="ID" shows it, one with data-close closes it.

    `opened` takes the errors of its form: a page that comes back with some shows the dialog at once.
    """
    return render("dialog.html", content=content, id=id, title=title, css="dialog", opened=opened)


@register.simple_block_tag
def drawer(content: SafeString, id: str, title: str, opened: object = False) -> SafeString:
    """A dialog at the right edge, for forms; `opened` as for `dialog`."""
    return render("dialog.html", content=content, id=id, title=title, css="drawer", opened=opened)


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
    return render(
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
    return render("tab.html", id=id, label=label, selected=selected, count=count)


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
    return render("stations.html", steps=list(steps), label=label, css=css)
