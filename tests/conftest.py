"""Fixtures of every test. Runs without Django (`-p no:django`: the browser, the library) have no people in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import settings
from django.utils import translation

if settings.configured:
    from tests.people import people

    __all__ = ["people"]

    @pytest.fixture(autouse=True)
    def own_language() -> Iterator[None]:
        """Every test begins in the default language: a client's last request leaves its own behind."""
        translation.deactivate_all()
        translation.activate(settings.LANGUAGE_CODE)
        yield
        translation.deactivate()
