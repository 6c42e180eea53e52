"""Form fields out of specifications: bounds, choices and defaults are the specification's own, the words are the page's.

A field that was not sent at all is not part of the answer, so the specification's default stands; one that was sent empty
is null where the specification can be null, and its default elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.forms import BoundField
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from common import figures
from moe_core.spec.base import Spec

BOUNDS = {
    "min_value": gettext_lazy("at least %(limit_value)s."),
    "max_value": gettext_lazy("at most %(limit_value)s."),
}
WHOLE = {**BOUNDS, "invalid": gettext_lazy("a whole number is needed.")}
NUMBER = {**BOUNDS, "invalid": gettext_lazy("a number is needed.")}


@dataclass(frozen=True, slots=True)
class Ask:
    """How a page asks for one field of a specification."""

    label: Any
    help: Any = ""
    # What the values of a choice are called.
    words: Mapping[Any, Any] = field(default_factory=dict)


class Switch(forms.CheckboxInput):
    """A box that also says that it was shown: off is an answer, absence is none."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> Any:
        """The box after a hidden “off” of the same name; the later of two values counts."""
        box = super().render(name, value, attrs, renderer)
        return format_html('<input type="hidden" name="{}" value="off">{}', name, box)

    def value_from_datadict(self, data: Any, files: Any, name: str) -> bool:
        """The last value that was sent."""
        sent = data.getlist(name) if hasattr(data, "getlist") else [data[name]] if name in data else []
        return bool(sent) and sent[-1] not in ("off", "False", "false", "", False, None)

    def value_omitted_from_data(self, data: Any, files: Any, name: str) -> bool:
        """Whether the box was not shown."""
        return name not in data


class Above:
    """A number must lie above a bound that it may not reach."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, value: float) -> None:
        """Raise ValidationError with the bound."""
        if value <= self.bound:
            raise ValidationError(_("above %(limit_value)s.") % {"limit_value": f"{self.bound:g}"})


class Below(Above):
    """A number must lie below a bound that it may not reach."""

    def __call__(self, value: float) -> None:
        """Raise ValidationError with the bound."""
        if value >= self.bound:
            raise ValidationError(_("below %(limit_value)s.") % {"limit_value": f"{self.bound:g}"})


@cache
def facts_of(schema: type[Spec], name: str) -> Mapping[str, Any]:
    """What the JSON schema says of a field; `nullable` beside it."""
    whole = schema.model_json_schema()["properties"][name]
    kinds = whole.get("anyOf", [whole])
    own = next((kind for kind in kinds if kind.get("type") != "null"), whole)
    return {**whole, **own, "nullable": len(kinds) > 1 and {"type": "null"} in kinds}


def default_of(schema: type[Spec], name: str) -> Any:
    """What the specification takes when nobody says anything; None where it must be told."""
    return facts_of(schema, name).get("default")


def spec_field(schema: type[Spec], name: str, ask: Ask, **more: Any) -> forms.Field:
    """The form field of one field of a specification."""
    facts = facts_of(schema, name)
    options: dict[str, Any] = {"label": ask.label, "help_text": ask.help, "initial": facts.get("default")}
    options["required"] = "default" not in facts and not facts["nullable"]
    options |= more
    made: forms.Field
    if "enum" in facts:
        made = _choice(facts, ask, options)
    elif facts.get("type") == "boolean":
        made = forms.BooleanField(**{**options, "required": False}, widget=Switch)
    elif facts.get("type") == "integer":
        low, high = _whole_bounds(facts)
        made = forms.IntegerField(min_value=low, max_value=high, error_messages=WHOLE, **options)
    elif facts.get("type") == "number":
        made = _number(facts, options)
    else:
        made = forms.RegexField(facts.get("pattern", r"^.*$"), **options)
    made.spec_default = facts.get("default")  # type: ignore[attr-defined]
    return made


def _choice(facts: Mapping[str, Any], ask: Ask, options: dict[str, Any]) -> forms.Field:
    values = list(facts["enum"])
    choices = [(value, ask.words.get(value, str(value))) for value in values]
    if facts["nullable"]:
        choices.insert(0, ("", ask.words.get(None, _("none"))))
    coerce: Callable[[Any], Any] = type(values[0])
    return forms.TypedChoiceField(choices=choices, coerce=coerce, empty_value=None, **options)


def _whole_bounds(facts: Mapping[str, Any]) -> tuple[int | None, int | None]:
    low, high = facts.get("minimum"), facts.get("maximum")
    if "exclusiveMinimum" in facts:
        low = facts["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in facts:
        high = facts["exclusiveMaximum"] - 1
    return low, high


def _number(facts: Mapping[str, Any], options: dict[str, Any]) -> forms.Field:
    number = forms.FloatField(
        min_value=facts.get("minimum"), max_value=facts.get("maximum"), error_messages=NUMBER, **options,
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
    )  # fmt: skip
    if "exclusiveMinimum" in facts:
        number.validators.append(Above(facts["exclusiveMinimum"]))
    if "exclusiveMaximum" in facts:
        number.validators.append(Below(facts["exclusiveMaximum"]))
    return number


@dataclass(frozen=True, slots=True)
class Part:
    """A specification, or a corner of one, as a run of form fields with a common prefix.

    `lead` names a choice whose empty value, called `none`, means that there is no such part at all.
    """

    schema: type[Spec]
    asks: Mapping[str, Ask]
    prefix: str = ""
    lead: str = ""
    none: Any = ""
    # What the page does not ask and sends as it is.
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The form's names of its fields."""
        return [self.prefix + name for name in self.asks]

    def fields(self) -> dict[str, forms.Field]:
        """Its form fields."""
        made = {self.prefix + name: spec_field(self.schema, name, ask) for name, ask in self.asks.items()}
        if self.lead:
            lead = made[self.prefix + self.lead]
            lead.choices = [("", self.none), *lead.choices]  # type: ignore[attr-defined]
            lead.initial, lead.required, lead.spec_default = "", False, ""  # type: ignore[attr-defined]
        return made

    def bound(self, form: forms.BaseForm, *names: str) -> list[BoundField]:
        """Its fields on a page: those that are named, or all but the lead."""
        chosen = names or [name for name in self.asks if name != self.lead]
        return [form[self.prefix + name] for name in chosen]

    def initial(self, value: Mapping[str, Any] | None) -> dict[str, Any]:
        """The form's values for a saved part."""
        if value is None:
            return {self.prefix + self.lead: ""} if self.lead else {}
        return {self.prefix + name: value[name] for name in self.asks if name in value}

    def data(self, form: forms.BaseForm) -> dict[str, Any] | None:
        """What was sent of it, as plain data; None where the lead says that there is no such part."""
        found = dict(self.fixed)
        for name in self.asks:
            key = self.prefix + name
            if key not in form.cleaned_data or was_omitted(form, key):
                continue
            value = form.cleaned_data[key]
            if value not in (None, "") or facts_of(self.schema, name)["nullable"]:
                found[name] = None if value == "" else value
        return None if self.lead and not found.get(self.lead) else found

    def is_chosen(self, form: forms.BaseForm) -> bool:
        """Whether there is such a part, as far as the form says."""
        return not self.lead or bool(form[self.prefix + self.lead].value())


def was_omitted(form: forms.BaseForm, name: str) -> bool:
    """Whether a field was not on the page that was sent."""
    widget = form.fields[name].widget
    return widget.value_omitted_from_data(form.data, form.files, form.add_prefix(name))


def forget(form: forms.BaseForm, names: Iterable[str]) -> None:
    """Take back what was said of fields that do not count now; what was typed into them stays."""
    for name in names:
        form.errors.pop(name, None)


def is_changed(bound: BoundField) -> bool:
    """Whether a field has another value than its specification would take by itself."""
    value, usual = bound.value(), getattr(bound.field, "spec_default", bound.field.initial)
    if isinstance(bound.field, forms.BooleanField):
        return bool(value) != bool(usual)
    return _plain(value) != _plain(usual)


def _plain(value: Any) -> str:
    if value in (None, ""):
        return ""
    try:
        return f"{float(value):.9g}"
    except (TypeError, ValueError):
        return str(value)


def usual_words(bound: BoundField) -> str:
    """The default of a number or choice where another value stands; "" where it stands itself, or there is none."""
    usual = getattr(bound.field, "spec_default", None)
    if usual in (None, "") or isinstance(bound.field, forms.BooleanField) or not is_changed(bound):
        return ""
    if isinstance(bound.field, forms.ChoiceField):
        return str(dict(bound.field.choices).get(usual, usual))  # type: ignore[arg-type]
    return figures.plain(usual)
