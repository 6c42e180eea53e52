"""One instance for each file: an engine takes seconds to start, and the tests only talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.apps.gateway.served import Instance, running_instance


@pytest.fixture(autouse=True)
def _django_db_marker() -> None:
    """Replaces pytest-django's: the mark makes the database, but no test is wrapped in a transaction or emptied after.

    Rows must be seen by the web process, and live as long as the instance, which empties the database at its end.
    """


@pytest.fixture(scope="module")
def instance(django_db_setup: None, django_db_blocker: Any, tmp_path_factory: Any) -> Iterator[Instance]:
    """A running instance; tests may use the database."""
    with django_db_blocker.unblock(), running_instance(tmp_path_factory.mktemp("i")) as running:
        yield running
