"""State changes are one UPDATE with the expected old state; the row count says whether it happened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import Model

from common.errors import Conflict


def transition(
    row: Model, *, expected: str | Iterable[str], to: str, field: str = "state", **changes: Any
) -> None:
    """Move a row from one of the expected states to another, or raise Conflict and change nothing."""
    allowed = [expected] if isinstance(expected, str) else list(expected)
    manager = type(row)._default_manager
    moved = manager.filter(pk=row.pk, **{f"{field}__in": allowed}).update(**{field: to}, **changes)
    if moved != 1:
        now = manager.filter(pk=row.pk).values_list(field, flat=True).first()
        raise Conflict(
            f"{type(row)._meta.verbose_name} {row.pk} is {now!r}, not {' or '.join(repr(word) for word in allowed)}; "
            f"it cannot become {to!r}."
        )
    setattr(row, field, to)
    for name, value in changes.items():
        setattr(row, name, value)
