"""The strict JSON parser as DRF sees it. The rules are moe_core's: both doors must refuse the same bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from moe_core.strict_json import StrictJsonError, loads


class StrictJSONParser(BaseParser):
    """JSON without surprises: bounded depth, finite numbers, no duplicate keys, no NUL, no lone surrogates."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the parsed body or raise a 400."""
        try:
            # One byte more than allowed shows that a body is too large, however large it is.
            return loads(stream.read(settings.MAX_BODY_BYTES + 1), max_bytes=settings.MAX_BODY_BYTES)
        except StrictJsonError as error:
            raise ParseError(str(error)) from error
