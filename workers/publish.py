"""From the child's result to an immutable version: files into the store first, then the rows as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import Invalid
from jobs.choices import JobKind
from jobs.execution import JobClaim, job_event, job_success
from jobs.models import Job
from moe_core.errors import SpecError
from moe_core.spec import ModelSpec
from registry import store
from registry.models import Model
from registry.services import model_find_or_create, version_create
from workers.relay import Relay


def publish(claim: JobClaim, relay: Relay, result: dict[str, Any], out_dir: Path) -> None:
    """Register what a child made, and end the job, while the lease holds; some made nothing but a report."""
    if claim.job.keeps_nothing:
        relay.persist(lambda: end_report(claim, result))
        return
    relay.persist(lambda: job_event(claim, "stage", {"stage": "register"}, stage="register"))
    spec = spec_of(result)
    files = relay.persist(lambda: store.ingest(out_dir))
    if not files:
        raise Invalid("The job ended well but left no files; nothing was registered.", code="no_result")
    relay.persist(lambda: register(claim, result, spec, files))


def end_report(claim: JobClaim, result: dict[str, Any]) -> None:
    """End a job that kept nothing."""
    with job_success(claim, kept_result(result)):
        pass


def register(claim: JobClaim, result: dict[str, Any], spec: ModelSpec, files: store.Files) -> None:
    """Write version and job in one transaction that commits only while the claim holds."""
    job = claim.job
    with job_success(claim, kept_result(result)) as made:
        made.append(
            version_create(
                caller_team=job.team,
                model=model_of(job),
                spec=spec,
                inspection=result.get("inspection") or {},
                files=files,
                parent=job.base_version,
                lineage=lineage_of(job, result),
                report=result.get("tuning") or result.get("operation") or {},
                created_by=job.created_by,
            )
        )


def spec_of(result: dict[str, Any]) -> ModelSpec:
    """Read the model's specification out of a child's words."""
    try:
        return ModelSpec.parse(result.get("spec"))
    except SpecError as error:
        raise Invalid(
            f"The job's result has no valid model specification: {error}", code="no_result"
        ) from error


def kept_result(result: dict[str, Any]) -> dict[str, Any]:
    """What stays on the job's row; the specification and the inspection are the version's."""
    return {key: value for key, value in result.items() if key not in ("spec", "inspection")}


def model_of(job: Job) -> Model:
    """The model that gets the new version: that of the base, or the one that the import names."""
    if job.base_version is not None:
        return job.base_version.model
    facts = {"licence": job.inputs.get("licence", ""), "source": job.inputs.get("source", "")}
    return model_find_or_create(team=job.team, name=job.spec["name"], created_by=job.created_by, **facts)


def lineage_of(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Where a version comes from: the job, the frozen parts, their hashes."""
    facts: dict[str, Any] = {"job_id": job.pk, "kind": job.kind, **(result.get("lineage") or {})}
    if job.kind == JobKind.IMPORT:
        return facts | {"source": job.inputs.get("source", ""), "source_kind": job.inputs["source_kind"]}
    if job.kind == JobKind.OPERATE:
        corpus = job.inputs["corpus"]
        hashes = {"train": corpus["train"], "held_out": corpus["held_out"]} if corpus else {}
        return facts | {
            "others": job.inputs["others"],
            "corpus_id": corpus["id"] if corpus else None,
            "hashes": hashes,
            "operate": job.inputs["operate"],
        }
    layout, domain_map, corpus = job.inputs["layout"], job.inputs["domain_map"], job.inputs["corpus"]
    return facts | {
        "layout_id": layout["id"] if layout else None,
        "layout_revision": layout["revision"] if layout else None,
        "map_id": domain_map["id"],
        "map_revision": domain_map["revision"],
        "colours": domain_map.get("colours") or {},
        "corpus_id": corpus["id"],
        "hashes": {"train": corpus["train"], "held_out": corpus["held_out"]},
        "tune": job.inputs["tune"],
    }
