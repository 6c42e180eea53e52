"""Forms of the registry's pages."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _


class ModelForm(forms.Form):
    """What is said about a model."""

    name = forms.CharField(label=_("Name"), max_length=120)
    licence = forms.CharField(label=_("Licence"), max_length=120, required=False)
    source = forms.CharField(label=_("Source"), max_length=500, required=False)
    description = forms.CharField(
        label=_("Description"), max_length=4000, required=False, widget=forms.Textarea(attrs={"rows": 4})
    )


class AliasForm(forms.Form):
    """A name for one of the versions."""

    name = forms.SlugField(
        label=_("Alias"), max_length=40, help_text=_("For example champion or challenger.")
    )
    version = forms.TypedChoiceField(label=_("Version"), coerce=int)

    def __init__(self, *args: object, choices: list[tuple[int, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.fields["version"].choices = choices  # type: ignore[attr-defined]


class NoteForm(forms.Form):
    """A version's remark."""

    note = forms.CharField(label=_("Note"), max_length=400, required=False)


class UploadForm(forms.Form):
    """A model file."""

    file = forms.FileField(label=_("File"), help_text=_("A GGUF file."))
    sha256 = forms.RegexField(
        label=_("Expected SHA-256"), regex=r"^[0-9a-fA-F]{64}$", required=False,
        help_text=_("Leave it empty, or paste what the publisher states; other bytes are refused."),
    )  # fmt: skip
