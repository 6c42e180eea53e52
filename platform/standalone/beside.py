"""`./turnout services -- CMD`: a command with a throwaway PostgreSQL and Valkey beside it."""

from __future__ import annotations

import os
import subprocess

from standalone.errors import StandaloneError
from standalone.services import throwaway_services


def run(_name: str, arguments: list[str]) -> int:
    """Start services, run the command with their addresses in its environment, stop them."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command or command[0] in ("-h", "--help"):
        raise StandaloneError("say which command: ./turnout services -- python manage.py migrate")
    with throwaway_services({}) as services:
        environment = {"DJANGO_SETTINGS_MODULE": "config.settings.dev", **os.environ, **services.environment}
        return subprocess.run(command, env=environment, check=False).returncode
