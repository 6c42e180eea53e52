"""Values of the query, which come as texts."""

from __future__ import annotations

from django.utils.translation import gettext as _
from rest_framework.request import Request

from common.errors import Invalid

MAX_ID = 2**63 - 1
MAX_DIGITS = 19


def whole_number(request: Request, name: str, *, default: int, high: int = MAX_ID) -> int:
    """Return a whole number of the query, `high` for a greater one; raise Invalid for anything else."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    # isdigit() alone takes digits that int() does not read.
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
        reason = _("%(name)s must be a whole number from 0 to %(high)s.") % {"name": name, "high": high}
        raise Invalid(reason, fields={name: reason})
    return min(high, int(text))
