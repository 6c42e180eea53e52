"""Fixtures of every test. Runs without Django (`-p no:django`: the browser, the library) have no people in them."""

from __future__ import annotations

from django.conf import settings

if settings.configured:
    from tests.people import people

    __all__ = ["people"]
