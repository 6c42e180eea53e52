"""Secrets that stand in addresses (set-up links, invitations) or in messages do not reach a log."""

from __future__ import annotations

import logging
import re

# How accounts.tokens begins and what it appends; the beginning stays, to recognise it by.
SECRET = re.compile(r"\b(t[a-z]_[\w-]{4})[\w-]{20,}")


class MaskSecrets(logging.Filter):
    """Replaces whatever looks like a secret of ours in a log line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, masked where there is something to mask."""
        message = record.getMessage()
        if SECRET.search(message):
            record.msg, record.args = masked(message), ()
        return True


def masked(text: str) -> str:
    """Return the text with the beginnings of secrets only."""
    return SECRET.sub(r"\1…", text)
