"""Layouts as JSON files, in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from moe_core.strict_json import StrictJsonError, loads
from registry.models import ModelVersion

MAX_IMPORT_BYTES = 1 << 20


class ImportForm(forms.Form):
    """A layout as JSON, as `export` writes it."""

    file = forms.FileField(label=gettext_lazy("JSON file"), required=False)
    text = forms.CharField(
        label=gettext_lazy("or its text"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 8, "class": "mono"}),
    )
    base_version = forms.TypedChoiceField(label=gettext_lazy("Dense model to start from"), coerce=int)

    def __init__(self, *args: Any, bases: Iterable[ModelVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["base_version"].choices = [(base.pk, str(base)) for base in bases]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Read the JSON, from the file or from the text."""
        data: dict[str, Any] = super().clean() or {}
        file = data.get("file")
        raw = file.read(MAX_IMPORT_BYTES + 1) if file else data.get("text", "").encode()
        if not raw.strip():
            raise ValidationError(_("Choose a file or paste the JSON."))
        try:
            parsed = loads(raw, max_bytes=MAX_IMPORT_BYTES)
        except StrictJsonError as error:
            raise ValidationError(
                _("This is not JSON that can be read: %(why)s.") % {"why": error}
            ) from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get("spec"), dict):
            raise ValidationError(_("The JSON must be an object with “name” and “spec”."))
        data["layout"] = {"name": str(parsed.get("name", ""))[:120], "spec": parsed["spec"]}
        return data


def export_text(name: str, spec: dict[str, Any]) -> str:
    """A layout as JSON that `ImportForm` reads."""
    return (
        json.dumps({"format": "turnout.layout/1", "name": name, "spec": spec}, indent=2, ensure_ascii=False)
        + "\n"
    )
