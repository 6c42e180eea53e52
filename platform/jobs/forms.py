"""Forms: import a model, build and tune one."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from accounts.models import Team
from common.errors import DomainError
from jobs.builtin import CATALOGUE
from registry.selectors import uploads_of

MAX_CHOICES = 200
SOURCES = BUILTIN, UPLOAD, FOLDER = "builtin", "upload", "folder"


# What the floats of an imported model are kept in.
KEPT = {"bfloat16": _("16 bits (bf16)"), "float32": _("32 bits, twice the size")}


class ImportForm(forms.Form):
    """Where a model comes from, and what it is to be called."""

    source = forms.ChoiceField(
        label=_("Where from"),
        choices=[
            (BUILTIN, _("Comes along")),
            (UPLOAD, _("An uploaded file")),
            (FOLDER, _("A folder of the machine")),
        ],
        initial=BUILTIN,
    )
    builtin = forms.ChoiceField(
        label=_("Model that comes along"),
        choices=[(one.name, one.title) for one in CATALOGUE.values()],
        required=False,
    )
    upload = forms.TypedChoiceField(label=_("Uploaded file"), coerce=int, empty_value=None, required=False)
    path = forms.CharField(
        label=_("Path"),
        max_length=1000,
        required=False,
        help_text=_("Below one of the folders that TURNOUT_IMPORT_ROOTS names."),
    )
    name = forms.CharField(label=_("Name in the registry"), max_length=120)
    licence = forms.CharField(label=_("Licence"), max_length=120, required=False)
    dtype = forms.ChoiceField(
        label=_("Kept in"),
        choices=[*KEPT.items()],
        initial="bfloat16",
        required=False,
        help_text=_("bf16, which serving computes in, rounds what files hold in float32 and float16."),
    )

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, **more)
        uploads = uploads_of(team).filter(kind="gguf")[:MAX_CHOICES]
        choices = [(upload.pk, upload.name) for upload in uploads]
        self.fields["upload"].choices = [("", _("none chosen")), *choices]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """The chosen source must be told."""
        data = super().clean() or {}
        wanted = {BUILTIN: "builtin", UPLOAD: "upload", FOLDER: "path"}.get(data.get("source", ""))
        if wanted and not data.get(wanted) and wanted not in self.errors:
            self.add_error(wanted, _("Say which one."))
        return data

    def spec(self) -> dict[str, Any]:
        """The specification that the form asks for."""
        data = self.cleaned_data
        sources = {
            BUILTIN: {"kind": BUILTIN, "name": data["builtin"]},
            UPLOAD: {"kind": UPLOAD, "id": data["upload"]},
            FOLDER: {"kind": FOLDER, "path": data["path"]},
        }
        plain = {name: data[name] for name in ("name", "licence")}
        return {**plain, "dtype": data["dtype"] or "bfloat16", "source": sources[data["source"]]}


def version_words(version: Any) -> str:
    """How a version is offered: with its experts, so that a mixture is told from a dense one."""
    if version.is_dense:
        return str(_("%(version)s · dense") % {"version": version})
    count = version.num_experts
    words = ngettext("%(version)s · %(count)s expert", "%(version)s · %(count)s experts", count)
    return words % {"version": version, "count": count}


SOURCE_FIELDS = {"source.name": "builtin", "source.id": "upload", "source.path": "path"}
# Parts of a specification whose fields have a prefix in the form.
PREFIXES = {"capacity": "capacity-", "temperature_schedule": "schedule-"}


def _field_of(path: str) -> str:
    """The form's field that a path of the specification is about: `operation.num_experts` is `num_experts`."""
    if path in SOURCE_FIELDS:
        return SOURCE_FIELDS[path]
    parts = path.removeprefix("tune.").removeprefix("options.").split(".")
    if parts[0] in PREFIXES:
        return PREFIXES[parts[0]] + (parts[1] if len(parts) > 1 else "overflow")
    if parts[0] == "operation":
        inner = [part for part in parts[1:] if part != "quantisation"]
        return inner[0] if inner else parts[0]
    return parts[0]


def show_error(form: forms.Form, error: DomainError) -> None:
    """Put a service's complaint beside the fields that it is about."""
    named = {_field_of(path): message for path, message in error.fields.items()}
    known = {name: message for name, message in named.items() if name in form.fields}
    for name, message in known.items():
        form.add_error(name, message)
    if not known:
        form.add_error(None, error.message)
