"""The commands of `./turnout`: their names, their one-line help, and what each needs installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `packages` is "none", "run" or "dev"."""

    name: str
    help: str
    module: str
    packages: str = "run"
    model: bool = False


COMMANDS = {
    command.name: command
    for command in (
        Command("up", "set everything up and start it; Ctrl-C stops it", "standalone.up", "run", model=True),
        Command(
            "test", "set everything up and run every check and test", "standalone.checks", "dev", model=True
        ),
        Command(
            "demo",
            "run the main job from end to end through the REST API",
            "standalone.demo",
            "run",
            model=True,
        ),
        Command("stop", "stop the instance that runs in the data folder", "standalone.stop", "none"),
        Command("doctor", "say what this machine and this installation are", "standalone.doctor"),
        Command("manage", "run one of Django's management commands on this instance", "standalone.manage"),
        Command(
            "services",
            "run a command beside throwaway PostgreSQL and Valkey: services -- CMD",
            "standalone.beside",
        ),
        Command("seed", "fill the instance with sample data", "standalone.manage", "run", model=True),
        Command("bench", "measure, gated on correct results", "standalone.bench", "dev", model=True),
        Command("lint", "ruff over the code", "standalone.checks", "dev"),
        Command("types", "mypy over the code", "standalone.checks", "dev"),
        Command("contracts", "the one-way doors between the rooms", "standalone.checks", "dev"),
        Command("lock", "pin every package again (requirements/lock.txt)", "standalone.lock", "dev"),
    )
}

ENVIRONMENT = """\
  TURNOUT_PORT        the web port (default 8000)
  TURNOUT_DATA_DIR    where everything is kept (default ./var)
  DATABASE_URL        use this PostgreSQL instead of the embedded one
  REDIS_URL           use this Valkey or Redis instead of the embedded one"""


def help_text() -> str:
    """Return what `./turnout help` prints."""
    lines = ["usage: ./turnout COMMAND [options]      (./turnout COMMAND --help tells more)", ""]
    lines += [f"  {command.name:<12}{command.help}" for command in COMMANDS.values()]
    lines += [f"  {'version':<12}say the version", f"  {'help':<12}say this", "", "environment:", ENVIRONMENT]
    return "\n".join(lines)
