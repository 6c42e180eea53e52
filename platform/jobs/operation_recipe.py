"""What an operation was asked, in the words of its form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.utils.translation import gettext as _

from common import figures
from common.layers import layers_text
from jobs.models import Job
from jobs.operation_form import OPTIONS
from jobs.operation_forms import FORMS
from jobs.quantise_form import TRUNK, TRUNK_OWN, QuantiseForm, flat_packing
from registry.moe_facts import said

# Said elsewhere on the page, or too long for a line.
UNSAID = frozenset({"kind", "layout"})
LISTED = 8


def operation_recipe(job: Job) -> Iterator[tuple[str, str]]:
    """Every number and choice that was set, under the name that its form gives it."""
    wanted = job.inputs["operate"]
    operation = {name: value for name, value in wanted["operation"].items() if name not in UNSAID}
    kind = str(wanted["operation"]["kind"])
    if kind == QuantiseForm.kind:
        operation = flat_packing(operation)
    for name in sorted(operation, key=_place_of(kind)):
        if operation[name] is not None:
            yield _label(kind, name), _value(kind, name, operation[name])
    for name in ("prompts_per_domain", "prompt_tokens"):
        if name in wanted:
            yield str(OPTIONS.asks[name].label), figures.number(wanted[name])


def _place_of(kind: str) -> Callable[[str], int]:
    """Where a field stands in the form; the database keeps no order."""
    form = FORMS.get(kind)
    written = [] if form is None else [*form.declared_fields, *form.asks, *form.more]
    # The trunk comes after the experts.
    trunk = [*TRUNK, *TRUNK_OWN]
    written = [*(name for name in written if name not in trunk), *trunk]
    return lambda name: written.index(name) if name in written else len(written)


def _label(kind: str, name: str) -> str:
    form = FORMS.get(kind)
    if form is None:
        return name
    asks = {**form.asks, **form.more}
    if name in asks:
        return str(asks[name].label)
    return str(form.base_fields[name].label) if name in form.base_fields else name


def _value(kind: str, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, list):
        if name == "moe_layers":
            return layers_text(value)
        return figures.listed(value[:LISTED]) + (" …" if len(value) > LISTED else "")
    form = FORMS.get(kind)
    ask = {**form.asks, **form.more}.get(name) if form else None
    return said(ask, value) if ask is not None else figures.plain(value)
