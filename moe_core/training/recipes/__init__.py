"""What there is to train and to measure: one recipe a file."""

from __future__ import annotations
