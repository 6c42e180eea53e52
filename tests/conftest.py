"""Fixtures of every test. Runs without Django (`-p no:django`: the browser, the library) have no people in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Triton asks for its interpreter once, when it is first imported, by whomever: transformers does it too.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest
from django.conf import settings
from django.utils import translation

# A machine that others use may take longer than 200 ms for an example: that is no fault of what is tested.
hypothesis.settings.register_profile("patient", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("patient")

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
