"""The import job: a GGUF file or a folder in, a model directory and its inspection out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moe_core.checkpoint.store import load, read_spec, save, stored_dtype
from moe_core.errors import Cancelled, CheckpointError, MoeCoreError, SpecError
from moe_core.model.init import random_decoder
from moe_core.training import run_job
from tests.moe_core.tiny import tiny_llama
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


def test_what_is_stored_in_32_bits_is_rounded_aloud_or_kept(world: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    save(random_decoder(tiny_llama(), seed=3, std=0.1), wide, dtype="float32")
    rounded, kept = importing(world, tmp_path / "a", wide), importing(world, tmp_path / "b", wide)
    run_job("import", {}, rounded)
    run_job("import", {"dtype": "float32"}, kept)
    assert [event["code"] for event in rounded.of("log")] == ["converting", "rounded_to_16_bits"]
    assert [event["code"] for event in kept.of("log")] == ["converting"]
    before = load(wide, "float32").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load(kept.out_dir).state_dict().items())
    assert stored_dtype(rounded.out_dir) == "bfloat16"
    with pytest.raises(SpecError, match="dtype 'int8' is none that a model is kept in"):
        run_job("import", {"dtype": "int8"}, importing(world, tmp_path / "c", wide))
