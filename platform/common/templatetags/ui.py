"""The console's parts: `{% load ui %}`. How to use each: docs/reference/ui-kit.md."""

from __future__ import annotations

from django import template

from common.parts import figures, forms, signs, structure

register = template.Library()
for part in (signs, structure, figures, forms):
    register.tags.update(part.register.tags)
    register.filters.update(part.register.filters)
