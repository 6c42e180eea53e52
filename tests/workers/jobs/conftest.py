"""Jobs whose child is the small program of these tests; folders and store of each test apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.models import Job
from jobs.services import job_submit
from tests.apps.registry.fixtures import store_dir  # noqa: F401
from workers import relay, runtime

FAKE = (sys.executable, str(Path(__file__).with_name("fake_child.py")))


@pytest.fixture(autouse=True)
def fake_child(monkeypatch: Any, settings: Any, tmp_path: Path) -> None:
    """Start the tests' program in the place of moe_core's."""
    monkeypatch.setattr(runtime, "CHILD", FAKE)
    # Steps of these children take no time at all; each becomes a row.
    monkeypatch.setattr(relay, "FRAME_EVERY_S", 0.0)
    monkeypatch.setattr("jobs.dispatch.current_app.send_task", lambda *_args, **_more: None)
    settings.DATA_DIR = tmp_path


@pytest.fixture
def submit(people: Any, settings: Any, tmp_path: Path) -> Any:
    """Submit a job whose name is the script of its child."""
    source = tmp_path / "source"
    source.mkdir()
    settings.IMPORT_ROOTS = [tmp_path.resolve()]

    def _submit(script: str) -> Job:
        spec = {"name": script, "source": {"kind": "folder", "path": str(source)}}
        return job_submit(caller=people.owner, kind="import", spec=spec)

    return _submit
