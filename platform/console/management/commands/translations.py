"""`manage.py translations [app …]`: what lacks its Chinese, as entries ready to paste into the app's django.po."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from console.translations import Message, missing


class Command(BaseCommand):
    """Print the strings without a translation; the exit status is 1 when there are any."""

    help = "Print the strings that have no Chinese yet, as entries for the django.po of their app."

    def add_arguments(self, parser: CommandParser) -> None:
        """Apps to look at; all when none is named."""
        parser.add_argument("apps", nargs="*")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print them."""
        wanted = set(options["apps"])
        lacking = [message for message in missing() if not wanted or message.app in wanted]
        for message in lacking:
            self.stdout.write(entry(message))
        self.stderr.write(f"{len(lacking)} strings lack their Chinese.")
        sys.exit(1 if lacking else 0)


def entry(message: Message) -> str:
    """One entry of a .po file, its translation left empty."""
    lines = [f"#: {message.app}: {message.source.name}:{message.line}"]
    if message.context:
        lines.append(f"msgctxt {quoted(message.context)}")
    lines.append(f"msgid {quoted(message.msgid)}")
    if message.plural:
        lines += [f"msgid_plural {quoted(message.plural)}", 'msgstr[0] ""']
    else:
        lines.append('msgstr ""')
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A string as .po files write it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
