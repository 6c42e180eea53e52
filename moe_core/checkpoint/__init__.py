"""Models on disk: readers with their own bounds checks, import, save, load, tokenizer."""

from __future__ import annotations
