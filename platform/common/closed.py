"""Bodies of requests that say what they do not know: no field is passed over, and no number becomes a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.utils.translation import gettext as _
from rest_framework import serializers


def unknown_fields(sent: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return the refusal of every name that was sent and is not known, in the order of the alphabet."""
    return dict.fromkeys(sorted(set(sent) - set(known)), _("There is no such field."))


class Closed(serializers.Serializer):
    """Refuses fields that it does not know, by name. What reads the body of a request is one, nested ones too."""

    def to_internal_value(self, data: Any) -> Any:
        """Check the names before the values."""
        if isinstance(data, dict) and (unknown := unknown_fields(data, self.fields)):
            raise serializers.ValidationError(unknown)
        return super().to_internal_value(data)


class Words(serializers.CharField):
    """A text that is one already: numbers are refused."""

    def to_internal_value(self, data: Any) -> str:
        """The text as it was sent."""
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))
