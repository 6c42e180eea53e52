"""Bodies of requests that say what they do not know: no field is passed over, and no number becomes a word."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from rest_framework import serializers


class Closed(serializers.Serializer):
    """Refuses fields that it does not know, by name."""

    def to_internal_value(self, data: Any) -> Any:
        """Check the names before the values."""
        unknown = sorted(set(data) - set(self.fields)) if isinstance(data, dict) else []
        if unknown:
            raise serializers.ValidationError(dict.fromkeys(unknown, _("There is no such field.")))
        return super().to_internal_value(data)


class Words(serializers.CharField):
    """A text that is one already: numbers are refused."""

    def to_internal_value(self, data: Any) -> str:
        """The text as it was sent."""
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))
