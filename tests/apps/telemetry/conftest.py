"""Each test has a store of its own."""

from __future__ import annotations

from tests.apps.registry.fixtures import store_dir  # noqa: F401
