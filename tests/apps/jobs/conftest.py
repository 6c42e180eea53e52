"""Jobs of the standing people, each test with its own store and no bell outside."""

from __future__ import annotations

from typing import Any

import pytest

from tests.apps.jobs.fixtures import job  # noqa: F401
from tests.apps.registry.fixtures import store_dir  # noqa: F401


@pytest.fixture(autouse=True)
def rung(monkeypatch: Any) -> list[list[int]]:
    """Every ring that was sent to the broker in this test, newest last."""
    sent: list[list[int]] = []
    monkeypatch.setattr("jobs.dispatch.current_app.send_task", lambda name, args, **more: sent.append(args))
    return sent
