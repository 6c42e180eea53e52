"""Fixtures of every test."""

from __future__ import annotations

from tests.people import people

__all__ = ["people"]
