"""The import job: a GGUF file or a folder in, a model directory and its inspection out."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_core.checkpoint.store import read_spec
from moe_core.errors import Cancelled, CheckpointError, MoeCoreError
from moe_core.training import run_job
from tests.moe_core.training.world import RecordingIO


def importing(world: Path, folder: Path, source: Path) -> RecordingIO:
    io = RecordingIO(world, folder)
    io.inputs = {"source": source}
    return io


def test_a_folder_is_imported_with_its_stages_and_its_inspection(world: Path, tmp_path: Path) -> None:
    io = importing(world, tmp_path, world / "model")
    result = run_job("import", {"name": "anything"}, io)
    assert [event["stage"] for event in io.of("stage")] == ["read", "convert", "inspect"]
    assert result["spec"] == read_spec(io.out_dir).model_dump(mode="json")
    assert result["inspection"]["params_total"] > 0
    assert set(result["lineage"]["files"]) == {path.name for path in io.out_dir.iterdir()}


def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(world: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF but not really" * 10)
    io = importing(world, tmp_path, source)
    with pytest.raises(MoeCoreError):
        run_job("import", {}, io)
    assert not io.out_dir.exists()


def test_a_source_that_is_gone_is_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.gguf does not exist"):
        run_job("import", {}, importing(world, tmp_path, tmp_path / "gone.gguf"))


def test_an_import_can_be_cancelled(world: Path, tmp_path: Path) -> None:
    io = importing(world, tmp_path, world / "model")
    io.stop_at = ("read", 0, "cancel")
    with pytest.raises(Cancelled):
        run_job("import", {}, io)
    assert not io.out_dir.exists()
