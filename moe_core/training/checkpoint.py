"""Checkpoints of a run: written so that a kill at any moment leaves the last complete one, read back to the last bit.

A checkpoint is a directory: safetensors files, then `manifest.json`, which makes it complete. It is written beside its
place under a dotted name and renamed. Files that did not change since the checkpoint before are hard links to it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_core.checkpoint.atomic import fsync_path, write_json
from moe_core.checkpoint.files import read_json_object
from moe_core.checkpoint.hashes import sha256_of
from moe_core.checkpoint.safetensors import SafetensorsFile, write_safetensors
from moe_core.errors import CheckpointError, HashMismatch
from moe_core.failpoints import failpoint
from moe_core.kernels.cpu.native import library

# A code of `moe_core.sentences.RUN` and what belongs into its places.
Note = tuple[str, dict[str, str]]
FORMAT = 1
# Raised by who changes last digits of training in Python's code; the compiled library is told apart by its sources.
NUMERICS = 1
KEPT = 2
MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"
_RNG = "rng"


@dataclass(slots=True)
class Saved:
    """What a checkpoint holds."""

    stage: str
    # Steps of the stage that are done; the next one to run, and so the data cursor too.
    step: int
    # Small facts of the run so far: JSON.
    facts: dict[str, Any]
    # Groups of tensors, one file each.
    groups: dict[str, dict[str, Tensor]]


def environment(num_lanes: int, dtype: str) -> dict[str, Any]:
    """What must be the same for a resumed run to give the same bits."""
    native = library()
    return {
        "torch": torch.__version__,
        "numerics": NUMERICS,
        "kernels": "torch" if native is None else native.isa,
        "library": None if native is None else f"{native.name} by {native.compiler}",
        "lanes": num_lanes,
        "threads_per_lane": torch.get_num_threads(),
        "dtype": dtype,
    }


class CheckpointStore:
    """The checkpoints of one run, oldest first; `config_hash` ties them to the run's inputs and settings."""

    def __init__(self, directory: Path, config_hash: str, num_lanes: int = 1, dtype: str = "float32") -> None:
        self.directory = Path(directory)
        self.config_hash = config_hash
        self.environment = environment(num_lanes, dtype)
        self._last: tuple[Path, dict[str, Any]] | None = None

    def save(self, saved: Saved, frozen: frozenset[str] = frozenset()) -> tuple[Path, str]:
        """Write a checkpoint and return (its directory, sha256 of its manifest).

        Groups named in `frozen` never change once written: they are linked from the checkpoint before.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(path) for path in self._complete()), default=0)
        temporary = self.directory / f".{_PREFIX}{number:06d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        failpoint("checkpoint.started")
        files = {
            name: self._write_group(temporary, name, tensors, name in frozen)
            for name, tensors in {**saved.groups, _RNG: {"torch": torch.get_rng_state()}}.items()
        }
        failpoint("checkpoint.files_written")
        manifest = self._manifest(saved, files)
        write_json(temporary / MANIFEST, manifest)
        failpoint("checkpoint.manifest_written")
        fsync_path(temporary / MANIFEST)
        fsync_path(temporary)
        failpoint("checkpoint.before_rename")
        place = self.directory / f"{_PREFIX}{number:06d}"
        os.rename(temporary, place)
        failpoint("checkpoint.after_rename")
        fsync_path(self.directory)
        self._last = (place, manifest)
        self._remove_old()
        failpoint("checkpoint.done")
        return place, sha256_of(place / MANIFEST)

    def load_latest(self) -> tuple[Saved, list[Note]] | None:
        """The newest complete checkpoint whose bytes are right, and notes on those that were passed over.

        Raises CheckpointError when it belongs to other inputs or settings, or when a random state cannot be restored.
        """
        notes: list[Note] = []
        for path in reversed(self._complete()):
            try:
                manifest = self._checked_manifest(path)
            except (HashMismatch, CheckpointError, OSError) as error:
                notes.append(("passed_over", {"checkpoint": path.name, "why": str(error)}))
                continue
            return self._read(path, manifest, notes), notes
        return None

    def _write_group(
        self, folder: Path, name: str, tensors: Mapping[str, Tensor], is_frozen: bool
    ) -> dict[str, Any]:
        target = folder / f"{name}.safetensors"
        before = self._last[1]["files"].get(name) if self._last else None
        if is_frozen and before and self._last:
            os.link(self._last[0] / target.name, target)
            return dict(before)
        write_safetensors(target, tensors)
        fsync_path(target)
        failpoint("checkpoint.file_written")
        return {"sha256": sha256_of(target), "bytes": target.stat().st_size}

    def _manifest(self, saved: Saved, files: dict[str, Any]) -> dict[str, Any]:
        version, numbers, gauss = random.getstate()
        return {
            "format": FORMAT,
            "stage": saved.stage,
            "step": saved.step,
            "facts": saved.facts,
            "files": files,
            "config_hash": self.config_hash,
            "environment": self.environment,
            "python_random": [version, list(numbers), gauss],
        }

    def _checked_manifest(self, path: Path) -> dict[str, Any]:
        manifest = read_json_object(path / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"format {manifest.get('format')!r} is not {FORMAT}; it is another version's"
            )
        for name, entry in manifest["files"].items():
            actual = sha256_of(path / f"{name}.safetensors")
            if actual != entry["sha256"]:
                raise HashMismatch(f"{path.name}/{name}.safetensors", entry["sha256"], actual)
        return manifest

    def _read(self, path: Path, manifest: dict[str, Any], notes: list[Note]) -> Saved:
        if manifest["config_hash"] != self.config_hash:
            raise CheckpointError.of("another_run", path=path)
        if manifest["environment"] != self.environment:
            now = {"then": str(manifest["environment"]), "now": str(self.environment)}
            notes.append(("other_environment", {"checkpoint": path.name, **now}))
        groups = {name: _read_group(path / f"{name}.safetensors") for name in manifest["files"]}
        _restore_random(manifest["python_random"], groups.pop(_RNG)["torch"])
        self._last = (path, manifest)
        return Saved(manifest["stage"], manifest["step"], manifest["facts"], groups)

    def _complete(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.glob(f"{_PREFIX}*") if (path / MANIFEST).is_file())

    def _remove_old(self) -> None:
        for path in self._complete()[:-KEPT]:
            # Without its manifest it no longer counts, should the process die in the middle of this.
            (path / MANIFEST).unlink()
            shutil.rmtree(path)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _read_group(path: Path) -> dict[str, Tensor]:
    with SafetensorsFile(path) as file:
        return {key: file.tensor(key) for key in file.header.tensors}


def _restore_random(python_random: list[Any], torch_state: Tensor) -> None:
    try:
        version, numbers, gauss = python_random
        random.setstate((version, tuple(numbers), gauss))
        torch.set_rng_state(torch_state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the random state of the checkpoint cannot be restored: {error}") from error
