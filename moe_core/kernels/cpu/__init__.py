"""Decode kernels for processors: C++ with a plain C face, compiled at set-up, with torch as the fall-back."""

from __future__ import annotations
