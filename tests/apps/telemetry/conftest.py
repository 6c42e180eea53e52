"""Each test has a store of its own; most have a replica that serves, and what reads what engines say."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.models import Replica
from telemetry.ingest import Ingester
from tests.apps.registry.fixtures import store_dir  # noqa: F401
from tests.apps.telemetry.samples import served_replica


@pytest.fixture
def replica(people: Any, tmp_path: Any) -> Replica:
    return served_replica(people, tmp_path)


@pytest.fixture
def ingester() -> Ingester:
    return Ingester()
