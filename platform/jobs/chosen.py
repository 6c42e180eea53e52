"""Which expert: one number for every layer, or one for each."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from common.spec_fields import facts_of
from moe_core.spec.operations import AddExpertSpec

LAST = facts_of(AddExpertSpec, "source")["exclusiveMaximum"] - 1
MAX_LAYERS = 512


class ChosenField(forms.CharField):
    """“3”, or “3, 1, 0, 2”: an expert number, or one for each expert layer, lowest layer first."""

    def prepare_value(self, value: Any) -> Any:
        """A list as people write it."""
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value

    def to_python(self, value: Any) -> Any:
        """Return a number, a list of numbers, or None; raise ValidationError naming what cannot be read."""
        if isinstance(value, list | tuple):
            return list(value)
        parts = [
            part for part in re.split(r"[,，、;\s]+", str("" if value is None else value).strip()) if part
        ]
        for part in parts:
            if not part.isascii() or not part.isdigit() or len(part) > 6 or int(part) > LAST:
                words = {"part": part[:20], "last": LAST}
                raise ValidationError(
                    _("“%(part)s” is no expert; they are numbered from 0 to %(last)s at most.") % words
                )
        if len(parts) > MAX_LAYERS:
            raise ValidationError(_("At most %(count)s numbers.") % {"count": MAX_LAYERS})
        numbers = [int(part) for part in parts]
        return None if not numbers else numbers[0] if len(numbers) == 1 else numbers

    def validate(self, value: Any) -> None:
        """Something must be there where it is asked for."""
        if self.required and value is None:
            raise ValidationError(self.error_messages["required"], code="required")

    def run_validators(self, value: Any) -> None:
        """The bounds were looked at already."""
