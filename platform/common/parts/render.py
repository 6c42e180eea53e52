"""How a part becomes markup: its template in `templates/ui`."""

from __future__ import annotations

from typing import Any

from django.template.loader import render_to_string
from django.utils.safestring import SafeString


def render(name: str, **values: Any) -> SafeString:
    """The markup of `templates/ui/<name>`."""
    return render_to_string(f"ui/{name}", values)


def slug(title: str) -> str:
    """An id for an element that is named by a title in any language."""
    return "p-" + "".join(mark if mark.isalnum() else "-" for mark in str(title).lower())
