"""The rows in which a person says what the experts of a layer are: so many of a kind, so wide, with such an activation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django import forms
from django.forms import BoundField
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from common.figures import listed
from common.spec_fields import BOUNDS, WHOLE, Ask, facts_of, spec_field
from common.told import told
from moe_core.errors import SpecError
from moe_core.spec.base import Spec
from moe_core.spec.expert_kinds import ConstantExpert, IdentityExpert, MlpExpert, SwigluExpert, ZeroExpert
from registry.kinds import KINDS

MAX_ROWS = 256
SCHEMAS: dict[str, type[Spec]] = {
    one.model_fields["kind"].default: one
    for one in (SwigluExpert, MlpExpert, IdentityExpert, ZeroExpert, ConstantExpert)
}
ACTIVATIONS = list(
    dict.fromkeys([*facts_of(SwigluExpert, "activation")["enum"], *facts_of(MlpExpert, "activation")["enum"]])
)
COLUMNS = ("count", "kind", "width", "activation", "bias")
Row = dict[str, Any]


def name_of(row: int, column: str) -> str:
    """The form's name of one field."""
    return f"kinds-{row}-{column}"


def fields_of_row(row: int) -> dict[str, forms.Field]:
    """The fields of one row."""
    width = Ask(gettext_lazy("Width"))
    made: dict[str, forms.Field] = {
        "count": forms.IntegerField(
            label=gettext_lazy("How many"), min_value=1, max_value=1024, error_messages={**BOUNDS, **WHOLE}
        ),
        "kind": forms.ChoiceField(label=gettext_lazy("Kind"), choices=list(KINDS.items())),
        "width": spec_field(MlpExpert, "width", width, required=False),
        "activation": forms.ChoiceField(
            label=gettext_lazy("Activation"), choices=[(one, one) for one in ACTIVATIONS], required=False
        ),
        "bias": spec_field(MlpExpert, "bias", Ask(gettext_lazy("with biases"))),
    }
    return {name_of(row, column): made[column] for column in COLUMNS}


def initial_of_rows(rows: Iterable[Row]) -> dict[str, Any]:
    """The form's values for rows."""
    return {
        name_of(number, column): row[column]
        for number, row in enumerate(rows)
        for column in COLUMNS
        if column in row
    }


def typed_rows(data: Mapping[str, Any], count: int) -> list[Row]:
    """The rows as they were typed, valid or not."""
    found = []
    for number in range(count):
        row = {column: data.get(name_of(number, column), "") for column in COLUMNS if column != "bias"}
        sent = data.getlist(name_of(number, "bias")) if hasattr(data, "getlist") else []
        found.append({**row, "bias": bool(sent) and sent[-1] != "off"})
    return found


def experts_of(form: forms.Form, count: int) -> list[dict[str, Any]]:
    """Every expert that the rows say; what is wrong with a row is put beside its field."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        row = {column: form.cleaned_data.get(name_of(number, column)) for column in COLUMNS}
        schema = SCHEMAS.get(row["kind"] or "")
        if schema is None or row["count"] is None:
            continue
        kind = {
            "kind": row["kind"],
            **{name: row[name] for name in COLUMNS[2:] if name in schema.model_fields},
        }
        kind = {name: value for name, value in kind.items() if value not in (None, "")}
        try:
            parsed = schema.parse(kind)
        except SpecError as error:
            for column, sentence in _beside(error, row, schema):
                if not form.has_error(name_of(number, column)):
                    form.add_error(name_of(number, column), sentence)
            continue
        found += [parsed.model_dump(mode="json")] * min(row["count"], 1024)
    return found[:1025]


def _beside(error: SpecError, row: Row, schema: type[Spec]) -> Iterator[tuple[str, str]]:
    for place, sentence in error.complaints:
        column = str(place[0]) if place and place[0] in COLUMNS else "kind"
        if column == "width" and row["width"] is None:
            yield column, _("How wide?")
        elif column == "activation":
            known = listed(facts_of(schema, "activation")["enum"])
            yield column, _("This kind takes %(known)s.") % {"known": known}
        else:
            yield column, told(sentence)


def bound_rows(form: forms.BaseForm, count: int) -> list[dict[str, BoundField]]:
    """The rows for the template."""
    return [{column: form[name_of(row, column)] for column in COLUMNS} for row in range(count)]
