"""The files that a job reads, laid out by name for its child, each hashed again before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.builtin import builtin_path
from jobs.choices import JobKind
from jobs.models import Job, JobArtifact
from jobs.resolve import source_path
from registry import store
from registry.models import ModelVersion


def description_of(job: Job, folder: Path, checkpoints: Path) -> dict[str, Any]:
    """Lay out a job's inputs under `folder` and return what its child is told."""
    inputs = artifacts_of(job, folder / "inputs")
    if job.kind == JobKind.IMPORT:
        # Jobs from before it could be chosen have none.
        spec = {"name": job.spec["name"], "dtype": job.inputs.get("dtype", "bfloat16")}
        if "source" not in inputs:
            inputs["source"] = import_source(job)
    else:
        spec = job.inputs[job.kind]
        for place, other in enumerate(job.inputs.get("others") or []):
            version = ModelVersion.objects.get(pk=other["id"], model__team=job.team)
            inputs[f"other-{place}"] = version_folder(version, folder / "inputs" / f"other-{place}")
        if job.base_version is not None:
            inputs["model"] = version_folder(job.base_version, folder / "inputs" / "model")
    return {
        "kind": job.kind,
        "spec": spec,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "out_dir": str(folder / "out"),
        "checkpoint_dir": str(checkpoints),
    }


def artifacts_of(job: Job, folder: Path) -> dict[str, Path]:
    """Link the job's artifacts by name; `source.gguf` is known to the child as `source`."""
    placed: dict[str, Path] = {}
    for row in JobArtifact.objects.filter(job=job):
        target = folder / store.checked_name(row.name)
        store.verify(row.artifact_id)
        store.link(row.artifact_id, target)
        placed["source" if row.name == "source.gguf" else row.name] = target
    return placed


def import_source(job: Job) -> Path:
    """Where the model of an import lies that is not in the store yet."""
    if job.inputs["source_kind"] == "builtin":
        return builtin_path(job.spec["source"]["name"])
    return source_path(job.inputs)


def version_folder(version: ModelVersion, folder: Path) -> Path:
    """Link the files of a version, whose bytes must be those that were registered."""
    for entry in version.files.values():
        store.verify(entry["sha256"])
    return store.materialise(version, folder)
