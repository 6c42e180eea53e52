"""Pytest plugin: every run gets its own PostgreSQL and Valkey in its own temp folder, removed at the end.

Addresses that the environment gives already are used instead. With xdist the workers share the controller's
PostgreSQL (pytest-django gives each its own database) and each has its own Valkey. A run that names only
`tests/moe_core` or `tests/e2e` starts nothing: the library knows no services, the browser meets a whole instance.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from standalone.services import throwaway_services

NEEDS_NO_SERVICES = ("tests/moe_core", "tests/e2e")
MARK = "TURNOUT_TEST_SERVICES"
_open = ExitStack()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start the services before pytest-django reads the settings (a conftest would be too late)."""
    if _runs_nothing(early_config) or _names_only_service_free_tests(early_config):
        return
    given = dict(os.environ)
    if given.get("PYTEST_XDIST_WORKER") and given.get(MARK):
        given.pop("REDIS_URL", None)
    services = _open.enter_context(throwaway_services(given))
    os.environ.update(services.environment)
    os.environ[MARK] = "own"


def _runs_nothing(config: pytest.Config) -> bool:
    """True for runs that only show something."""
    options = config.known_args_namespace
    return any(getattr(options, name, False) for name in ("help", "version", "markers"))


def _names_only_service_free_tests(config: pytest.Config) -> bool:
    """True when each path on the command line lies in a folder whose tests use no service."""
    paths = [str(path).removeprefix("./") for path in config.known_args_namespace.file_or_dir]
    return bool(paths) and all(path.startswith(NEEDS_NO_SERVICES) for path in paths)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Stop them and remove their folder."""
    _open.close()
