"""Lamps, verdicts and identifiers: what says how a thing is and what it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from common import figures, gains
from common.parts.render import render

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


@register.simple_tag
def gain(change: str | None) -> SafeString:
    """The lamp of a judged change (`common.gains`) beside its figure; its word is for screen readers and the tooltip."""
    known = next((one for one in gains.WORDS if one and one == change), None)
    if known is None:
        return mark_safe("")
    word = gains.WORDS[known]
    return format_html(
        '<span class="gain" title="{}">{}<span class="visually-hidden">{}</span></span>',
        word, lampdot(gains.LAMPS[known]), word,
    )  # fmt: skip


@register.simple_tag
def gain_word(change: str | None) -> SafeString:
    """A judged change as a lamp with its word."""
    known = next((one for one in gains.WORDS if one == change), None)
    return lamp(gains.LAMPS[known or ""], str(gains.WORDS[known or ""]))


@register.simple_block_tag
def verdict(
    content: SafeString, state: str, more_url: str = "", more: str = "", id: str = "verdict"
) -> SafeString:
    """The page's answer in one sentence, with one lamp. Chinese sentences follow one another without a space."""
    if figures.is_chinese():
        content = mark_safe(SENTENCE_GAP.sub(r"\1\2", content))
    return render("verdict.html", content=content, state=lamp_of(state), more_url=more_url, more=more, id=id)


@register.simple_tag
def berth(text: object, href: str = "") -> SafeString:
    """An identifier, set apart so that it is read and copied as a unit."""
    if href:
        return format_html('<a class="berth" href="{}">{}</a>', href, text)
    return format_html('<span class="berth">{}</span>', text)


@register.simple_tag
def copyable(text: object, label: str = "") -> SafeString:
    """An identifier with a button that copies it."""
    return render("copyable.html", text=text, label=label)


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
