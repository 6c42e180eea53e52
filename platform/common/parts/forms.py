"""Form fields, pages of lists, and the words that scripts need."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable

from django import template
from django.core.paginator import Page
from django.forms import BaseForm, BoundField
from django.template.context import Context
from django.utils.html import format_html, format_html_join, json_script
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from common.parts.render import render
from common.spec_fields import is_changed, usual_words

register = template.Library()


@register.simple_tag
def field(bound: BoundField, note: str = "", css: str = "") -> SafeString:
    """A form field: label, control, help, error, tied for screen readers; its default where another value stands."""
    if bound.is_hidden:
        return mark_safe(str(bound) + str(bound.errors))
    if not note and (usual := usual_words(bound)):
        note = gettext("usually %(value)s") % {"value": usual}
    kind = getattr(bound.field.widget, "input_type", "")
    return render(
        "field.html", field=bound, note=note, css=css, is_box=kind == "checkbox", is_group=bound.use_fieldset
    )


@register.simple_tag
def fields(form: BaseForm, *names: str) -> SafeString:
    """The named fields of a form (all when none is named); the first call says what is wrong with the whole."""
    chosen = [form[name] for name in names] if names else list(form)
    said = getattr(form, "errors_are_said", False)
    form.errors_are_said = True  # type: ignore[attr-defined]
    errors = mark_safe("") if said else form_errors(form)
    return format_html("{}{}", errors, format_html_join("", "{}", ((field(one),) for one in chosen)))


@register.simple_tag
def form_errors(form: BaseForm) -> SafeString:
    """What is wrong with the form as a whole."""
    errors = form.non_field_errors() if form.is_bound else []
    return render("form_errors.html", errors=errors) if errors else mark_safe("")


@register.simple_block_tag
def more(content: SafeString, fields: Iterable[BoundField], label: str = "") -> SafeString:
    """Deep fields behind a disclosure: open where one of them is wrong or stands at another value than usual."""
    fields = list(fields)
    changed = sum(is_changed(one) for one in fields)
    opened = changed or any(one.errors for one in fields)
    return render("more.html", content=content, label=label, changed=changed, opened=opened)


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
    return render("pager.html", page=page, earlier=earlier, later=later)


@register.simple_tag
def js_words(*modules: str) -> SafeString:
    """The translations that JavaScript needs: each module has a tuple WORDS of message ids."""
    words = {msgid: gettext(msgid) for module in modules for msgid in importlib.import_module(module).WORDS}
    return json_script({msgid: text for msgid, text in words.items() if text != msgid}, "words")


@register.filter
def as_json(value: object) -> str:
    """A value for a data attribute; the template escapes it."""
    return json.dumps(value, separators=(",", ":"), default=str, ensure_ascii=False)
