"""Models on disk: readers with their own bounds checks, import, save, load, upcycle, tokenizer."""

from __future__ import annotations
