"""One tiny world for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.moe_core.training.world import RecordingIO, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def io(world: Path, tmp_path: Path) -> RecordingIO:
    return RecordingIO(world, tmp_path)
