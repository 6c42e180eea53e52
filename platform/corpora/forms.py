"""Forms of the corpora's pages."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from corpora.encodings import NAMED


class CorpusForm(forms.Form):
    """A new corpus."""

    name = forms.CharField(label=_("Name"), max_length=120)
    description = forms.CharField(label=_("Description"), max_length=400, required=False)


class FileForm(forms.Form):
    """A file of logs."""

    file = forms.FileField(label=_("File"))
    default_domain = forms.RegexField(
        label=_("Domain of rows that name none"), regex=r"^[a-z][a-z0-9_-]{1,11}$", required=False, max_length=12,
        help_text=_("For example support. Empty: such rows belong to no domain."),
        widget=forms.TextInput(attrs={"list": "domain-codes", "autocapitalize": "off", "spellcheck": "false"}),
    )  # fmt: skip
    encoding = forms.ChoiceField(
        label=_("Encoding"), choices=[("", _("told from the file")), *NAMED.items()], required=False,
        help_text=_("UTF-8 and UTF-16 are told for certain, GB 18030 is guessed; name any other."),
    )  # fmt: skip
