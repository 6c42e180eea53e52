"""Real sample logs for the demo, taken from packages that are installed anyway; nothing of them is shipped here."""

from __future__ import annotations

from .builder import SampleError, SampleFile, build
from .catalogue import DOMAINS, SampleDomain
from .dialogue import Dialogue

__all__ = ["DOMAINS", "Dialogue", "SampleDomain", "SampleError", "SampleFile", "build"]
