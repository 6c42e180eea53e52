"""An instance with a Valkey of its own, which a test may kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from standalone.rundir import throwaway_dir
from standalone.valkey import ValkeyServer
from tests.apps.gateway.live.conftest import _django_db_marker  # noqa: F401
from tests.apps.gateway.served import Instance, running_instance


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey that nobody else uses."""
    folder, lock = throwaway_dir()
    server = ValkeyServer(folder, Path(folder) / "valkey.log")
    server.start()
    yield server
    server.stop()
    lock.close()


@pytest.fixture(scope="module")
def instance(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: Any, valkey: ValkeyServer
) -> Iterator[Instance]:
    """A running instance; tests may use the database."""
    folder = tmp_path_factory.mktemp("i")
    with django_db_blocker.unblock(), running_instance(folder, redis_url=valkey.url) as running:
        yield running


@pytest.fixture(autouse=True)
def store_dir() -> None:
    """Replaces the store of each test: the instance has one for all of them."""
