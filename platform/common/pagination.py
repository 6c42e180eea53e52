"""Cursor pagination, newest first: a page does not shift while rows are added."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request

from common.errors import Invalid
from common.query_values import whole_number


class NewestFirst(CursorPagination):
    """Pages of 50 (at most 200) by descending id."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 200

    def get_page_size(self, request: Request) -> int:
        """Return how many rows a page has; raise Invalid for a limit that is no number of rows."""
        assert self.page_size_query_param is not None
        assert self.max_page_size is not None
        return whole_number(
            request, self.page_size_query_param, default=self.page_size, low=1, high=self.max_page_size
        )

    def decode_cursor(self, request: Request) -> Any:
        """Return the place that the cursor names; raise Invalid for one that we did not make."""
        try:
            return super().decode_cursor(request)
        except NotFound:
            words = _("This cursor was not made here: take it from “next” or “previous” of another page.")
            raise Invalid(words, fields={self.cursor_query_param: words}, code="bad_cursor") from None
