"""From a bare Python to the command asked for. Standard library only: nothing is installed yet."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from standalone.commands import COMMANDS, help_text
from standalone.environment import Environment
from standalone.errors import StandaloneError
from standalone.terminal import complain, say


def run(root: str, arguments: list[str]) -> None:
    """Carry out one `./turnout` command; does not return when the command is handed over."""
    name = arguments[0] if arguments else "help"
    if name in ("help", "-h", "--help"):
        say(help_text())
        return
    if name in ("version", "--version"):
        say(version(Path(root)))
        return
    command = COMMANDS.get(name)
    if command is None:
        complain(f"There is no command {name!r}.\n\n{help_text()}")
        raise SystemExit(2)
    environment = Environment(Path(root))
    wants_help = any(word in ("-h", "--help") for word in arguments[1:2])
    try:
        if command.packages == "none" or wants_help:
            python = environment.python if environment.is_usable() else Path(sys.executable)
        else:
            environment.prepare(
                dev=command.packages == "dev", model=command.model and "--no-demo" not in arguments
            )
            python = environment.python
    except StandaloneError as error:
        complain(f"turnout {name}: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    variables = environment.variables()
    variables["PYTHONPATH"] = os.pathsep.join(
        filter(None, [f"{root}/platform", os.environ.get("PYTHONPATH")])
    )
    sys.stdout.flush()
    os.execve(python, [str(python), "-m", "standalone", *arguments], variables)


def version(root: Path) -> str:
    """Return the version that pyproject.toml states."""
    with (root / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])
