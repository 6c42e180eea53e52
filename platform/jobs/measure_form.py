"""The form that measures a version as it is, alone or beside another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from accounts.models import Team
from jobs.operation_form import OperateForm
from moe_core.spec.operations import MeasureSpec
from registry.models import ModelVersion
from registry.operated import OPERATIONS


class MeasureForm(OperateForm):
    """Look at a version and change nothing."""

    kind, title, schema = "measure", OPERATIONS["measure"], MeasureSpec
    words = _(
        "Loss by domain, every figure of routing by layer, and which experts work for which domain, on held-out logs."
    )
    lacking = _("It needs a version; import one.")
    changes = False
    others = forms.TypedChoiceField(
        label=_("Beside"), coerce=int, empty_value=None, required=False,
        help_text=_("Another version with the same tokenizer, such as the one that it was made from."),
    )  # fmt: skip

    def __init__(self, *args: Any, team: Team, **more: Any) -> None:
        super().__init__(*args, team=team, **more)
        self.fields["others"].choices = [("", _("nothing")), *self.versions]  # type: ignore[attr-defined]

    @classmethod
    def fits(cls, version: ModelVersion) -> bool:
        """Every version: dense ones, packed ones, experts of several kinds."""
        return True

    def spec(self, *, preview: bool = False) -> dict[str, Any]:
        """With the version beside; there is nothing to preview."""
        beside = self.cleaned_data["others"]
        return {**super().spec(), "others": [] if beside is None else [beside]}

    @classmethod
    def initial_of(cls, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The one beside as a choice."""
        return {**super().initial_of(spec), "others": next(iter(spec.get("others") or []), "")}
