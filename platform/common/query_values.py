"""Values of the query, which come as texts."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.translation import gettext as _
from rest_framework.request import Request

from common.errors import Invalid
from common.figures import listed

MAX_ID = 2**63 - 1
MAX_DIGITS = 19


def whole_number(request: Request, name: str, *, default: int, low: int = 0, high: int = MAX_ID) -> int:
    """Return a whole number of the query from `low` on, `high` for a greater one; raise Invalid for anything else."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    # isdigit() alone takes digits that int() does not read.
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS or int(text) < low:
        bounds = {"name": name, "low": low, "high": high}
        reason = _("%(name)s must be a whole number from %(low)s to %(high)s.") % bounds
        raise Invalid(reason, fields={name: reason})
    return min(high, int(text))


def one_of(request: Request, name: str, known: Sequence[str]) -> str | None:
    """Return a word of the query, None where it is not there; raise Invalid for one that is not among `known`."""
    word = request.query_params.get(name)
    if word is not None and word not in known:
        reason = _("%(name)s must be one of these: %(known)s.") % {"name": name, "known": listed(known)}
        raise Invalid(reason, fields={name: reason})
    return word
