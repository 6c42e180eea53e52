"""Checkpoints: complete or not there, right to the byte or passed over, linked where nothing changed."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moe_core.checkpoint.hashes import sha256_of
from moe_core.errors import CheckpointError
from moe_core.training import checkpoint
from moe_core.training.checkpoint import KEPT, MANIFEST, CheckpointStore, Saved


def saved(step: int, **groups: dict[str, torch.Tensor]) -> Saved:
    return Saved(
        "route",
        step,
        {"before": {"loss": 3.5}},
        dict(groups) or {"gates": {"w": torch.full((2, 3), float(step))}},
    )


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path, sha256 = CheckpointStore(tmp_path, "h").save(saved(4))
    assert sha256 == sha256_of(path / MANIFEST)
    found = CheckpointStore(tmp_path, "h").load_latest()
    assert found is not None
    back, notes = found
    assert (back.stage, back.step, back.facts, notes) == ("route", 4, {"before": {"loss": 3.5}}, [])
    assert torch.equal(back.groups["gates"]["w"], torch.full((2, 3), 4.0))


def test_random_states_come_back(tmp_path: Path) -> None:
    random.seed(5)
    torch.manual_seed(5)
    CheckpointStore(tmp_path, "h").save(saved(1))
    drawn = (random.random(), torch.rand(3).tolist())
    CheckpointStore(tmp_path, "h").load_latest()
    assert (random.random(), torch.rand(3).tolist()) == drawn


def test_nothing_saved_means_nothing_found(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", "h").load_latest() is None


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "h")
    for step in range(5):
        store.save(saved(step))
    assert len(list(tmp_path.iterdir())) == KEPT


def test_a_frozen_group_is_written_once_and_linked_afterwards(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "h")
    done = {"w": torch.ones(100)}
    first, _ = store.save(saved(1, expert=done), frozenset({"expert"}))
    second, _ = store.save(saved(2, expert=done, gates={"w": torch.zeros(1)}), frozenset({"expert"}))
    assert (first / "expert.safetensors").stat().st_ino == (second / "expert.safetensors").stat().st_ino
    assert sha256_of(second / "expert.safetensors") == sha256_of(first / "expert.safetensors")


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "h")
    store.save(saved(1))
    last, _ = store.save(saved(2))
    file = last / "gates.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    found = CheckpointStore(tmp_path, "h").load_latest()
    assert found is not None
    assert found[0].step == 1
    assert found[1][0][0] == "passed_over"


def test_a_directory_without_its_manifest_does_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "h")
    store.save(saved(1))
    last, _ = store.save(saved(2))
    (last / MANIFEST).unlink()
    found = CheckpointStore(tmp_path, "h").load_latest()
    assert found is not None
    assert found[0].step == 1


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "mine").save(saved(1))
    with pytest.raises(CheckpointError, match="other settings"):
        CheckpointStore(tmp_path, "yours").load_latest()


def test_another_number_of_lanes_is_told_because_last_digits_may_differ(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "h", num_lanes=1).save(saved(1))
    found = CheckpointStore(tmp_path, "h", num_lanes=2).load_latest()
    assert found is not None
    assert found[1][0][0] == "other_environment"


def kernels(isa: str = "avx2", name: str = "decode-1", compiler: str = "g++ 12") -> SimpleNamespace:
    return SimpleNamespace(isa=isa, name=name, compiler=compiler)


def test_other_kernels_are_told_for_the_same_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "library", lambda: None)
    CheckpointStore(tmp_path, "h").save(saved(1))
    monkeypatch.setattr(checkpoint, "library", kernels)
    found = CheckpointStore(tmp_path, "h").load_latest()
    assert found is not None
    code, values = found[1][0]
    assert code == "other_environment"
    assert "'kernels': 'torch'" in values["then"]
    assert "'kernels': 'avx2'" in values["now"]


@pytest.mark.parametrize("other", [{"isa": "amx"}, {"name": "decode-2"}, {"compiler": "g++ 14"}])
def test_a_library_of_other_sources_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    notes = []
    for found_later in (kernels(), kernels(**other)):
        monkeypatch.setattr(checkpoint, "library", kernels)
        CheckpointStore(tmp_path, "h").save(saved(1))
        monkeypatch.setattr(checkpoint, "library", lambda found=found_later: found)
        found = CheckpointStore(tmp_path, "h").load_latest()
        assert found is not None
        notes.append([code for code, _ in found[1]])
    assert notes == [[], ["other_environment"]]


def test_other_numerics_of_python_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CheckpointStore(tmp_path, "h").save(saved(1))
    monkeypatch.setattr("moe_core.training.checkpoint.NUMERICS", -1)
    found = CheckpointStore(tmp_path, "h").load_latest()
    assert found is not None
    assert [code for code, _ in found[1]] == ["other_environment"]


def test_a_random_state_that_cannot_be_restored_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CheckpointStore(tmp_path, "h").save(saved(1))

    def refuse(_: torch.Tensor) -> None:
        raise RuntimeError("wrong size")

    monkeypatch.setattr(torch, "set_rng_state", refuse)
    with pytest.raises(CheckpointError, match="random state"):
        CheckpointStore(tmp_path, "h").load_latest()
