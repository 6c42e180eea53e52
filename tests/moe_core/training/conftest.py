"""One tiny world for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_core.training import progress
from tests.moe_core.training.world import RecordingIO, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def io(world: Path, tmp_path: Path) -> RecordingIO:
    return RecordingIO(world, tmp_path)


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of these runs take no time; the limit of four a second would swallow them, and with them the stops."""
    monkeypatch.setattr(progress, "MIN_SECONDS_BETWEEN_STEPS", 0.0)
