"""Runs one `./turnout` command inside the prepared environment."""

from __future__ import annotations

import importlib
import sys

from standalone.commands import COMMANDS, help_text
from standalone.errors import StandaloneError
from standalone.terminal import complain


def main(arguments: list[str]) -> int:
    """Hand the command to its module; each has `run(name, arguments) -> exit status`."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        complain(help_text())
        return 2
    try:
        return int(importlib.import_module(command.module).run(command.name, arguments[1:]))
    except StandaloneError as error:
        complain(f"turnout {command.name}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
