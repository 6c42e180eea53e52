"""The buttons of the rows of kinds: a row more, a row less. Nothing is saved, nothing that was typed is lost."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django.http import QueryDict

from common.spec_fields import Switch
from layouts.forms import LayoutForm
from layouts.kind_rows import COLUMNS, MAX_ROWS, name_of, typed_rows
from registry.models import ModelVersion

ADD, DROP = "add-kind", re.compile(r"drop-kind-(\d{1,3})")


def form_with_rows(data: QueryDict, bases: Iterable[ModelVersion]) -> LayoutForm:
    """The form as it was typed, after the button that was pressed."""
    typed = LayoutForm(data, bases=bases)
    rows = typed_rows(data, typed.num_rows)
    action = data.get("act", "")
    if action == ADD and len(rows) < MAX_ROWS:
        rows.append(
            {**rows[-1], "count": 1} if rows else {"kind": "swiglu", "count": 1, "activation": "silu"}
        )
    elif (found := DROP.fullmatch(action)) and int(found[1]) < len(rows) > 1:
        del rows[int(found[1])]
    values: dict[str, Any] = {name: data.get(name) for name in data if not name.startswith("kinds-")}
    for name, field in typed.fields.items():
        if isinstance(field.widget, Switch) and name in data:
            values[name] = field.widget.value_from_datadict(data, {}, name)
    for number, row in enumerate(rows):
        values |= {name_of(number, column): row[column] for column in COLUMNS if column in row}
    return LayoutForm(initial={**values, "kind_rows": len(rows)}, bases=bases)
