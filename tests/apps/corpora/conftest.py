"""Each test has a store of its own."""

from __future__ import annotations

import pytest

from corpora import services
from tests.apps.registry.fixtures import store_dir  # noqa: F401


@pytest.fixture
def corpus(people):
    return services.corpus_create(caller=people.owner, name="Logs")
