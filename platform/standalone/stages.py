"""The stages of `./turnout test`, each with the command that decides it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest"]
MANAGE = [PYTHON, "manage.py"]
# How a command that is not pytest says that it could not run, and why: this status, and a line that begins so.
UNAVAILABLE = os.EX_UNAVAILABLE
NOT_RUN = "Not run: "


@dataclass(frozen=True, slots=True)
class Stage:
    """One check: what it is called, what it runs, what it needs."""

    name: str
    title: str
    command: list[str]
    needs_services: bool = False
    needs_browser: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_pytest(self) -> bool:
        """True when the last line of its output counts tests."""
        return self.command[: len(PYTEST)] == PYTEST

    @property
    def needs_kernels(self) -> bool:
        """True when the CPU kernels are to be compiled before it runs."""
        return self.is_pytest or self.name == "speed"


_DJANGO = {"DJANGO_SETTINGS_MODULE": "config.settings.test"}
LINT = Stage("lint", "ruff", [PYTHON, "-m", "ruff", "check", "."])
TYPES = Stage("types", "mypy", [PYTHON, "-m", "mypy"])
CONTRACTS = Stage("contracts", "import contracts", ["lint-imports"])
MIGRATIONS = Stage(
    "migrations",
    "models and migrations agree",
    [*MANAGE, "makemigrations", "--check", "--dry-run"],
    True,
    False,
    _DJANGO,
)
SCHEMA = Stage(
    "schema", "OpenAPI schema", [*MANAGE, "spectacular", "--validate", "--fail-on-warn", "--file", "/dev/null"],
    True, False, _DJANGO,
)  # fmt: skip
TESTS = Stage("tests", "tests", [*PYTEST, "-m", "not browser", "--durations=15"])
FAST = Stage("fast", "quick tests", [*PYTEST, "-m", "not browser and not slow and not faults", "-q"])
NATIVE = Stage("native", "tests of moe_core", [*PYTEST, "-p", "no:django", "tests/moe_core", "-q"])
# Among all is its quick part alone, which takes a third of the time. Each version that it installs is most of a gigabyte.
TRITON = Stage("triton", "kernels with each version of Triton", [PYTHON, "-m", "standalone.tritons"])
TRITON_QUICK = Stage("triton-quick", "other versions of Triton", [*TRITON.command, "--quick"])
FAULTS = Stage("faults", "tests that break things", [*PYTEST, "-m", "faults"])
SPEED = Stage("speed", "speed against transformers", [PYTHON, "-m", "benchmarks.compare", "--quick"])
# In a process of its own: Playwright leaves an event loop running, and Django's ORM then refuses to work.
BROWSER = Stage(
    "browser", "browser tests", [*PYTEST, "-p", "no:django", "-m", "browser", "tests/e2e"], needs_browser=True
)
# Console pages whose requests the test client answers; each test ends the event loop that it began.
PAGES = Stage("pages", "pages in a browser", [*PYTEST, "-m", "browser", "tests/apps"], needs_browser=True)

STATIC = [LINT, TYPES, CONTRACTS, MIGRATIONS, SCHEMA]
SUBSETS = {
    "all": [*STATIC, TESTS, TRITON_QUICK, BROWSER, PAGES, SPEED],
    "fast": [LINT, CONTRACTS, FAST],
    "static": STATIC,
    **{
        stage.name: [stage]
        for stage in (
            LINT,
            TYPES,
            CONTRACTS,
            MIGRATIONS,
            SCHEMA,
            TESTS,
            NATIVE,
            TRITON,
            TRITON_QUICK,
            FAULTS,
            BROWSER,
            PAGES,
            SPEED,
        )
    },
}
