#!/usr/bin/env python
"""Django's command line; puts the source root on the path and does nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parent / "platform"


def main() -> None:
    """Run one management command."""
    if (SOURCE_ROOT / "__init__.py").exists():
        raise SystemExit(
            "platform/__init__.py must not exist: it would shadow Python's own module `platform`. Delete it."
        )
    sys.path.insert(0, str(SOURCE_ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.dev")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
