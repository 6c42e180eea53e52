"""A real tuning run of a tiny model: whatever happens to its worker, the result is the same to the last bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from corpora.models import Corpus
from jobs.models import Checkpoint, Job, JobEvent
from jobs.services import job_cancel, job_submit
from layouts.services import layout_create
from moe_core.strict_json import loads
from registry import store
from registry.models import ModelVersion
from registry.services import model_create, version_create
from routing.services import map_create
from tests.faults.stack import check_invariants, children_in, job_in, until
from tests.moe_core.training.world import DOMAINS, make_world, tune_spec

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.django_db(transaction=True)]
PATIENCE_S = 180.0


@pytest.fixture
def request_for(stack, tmp_path) -> Any:
    """Return a function that makes a specification over one tiny world."""
    stack.app = "workers.app"
    caller, world = stack.people.owner, make_world(tmp_path / "world")
    spec = loads((world / "model" / "config.json").read_bytes())
    version = version_create(
        caller_team=caller.team, model=model_create(team=caller.team, name="Tiny", created_by=None),
        spec=_model_spec(world), inspection={"hidden": spec["hidden_size"]}, directory=world / "model",
    )  # fmt: skip
    plain = tune_spec()
    layout = layout_create(caller=caller, name="Four", base_version_id=version.pk, spec=plain["layout"])
    domains = [
        {"code": code, "name_en": code, "name_zh": code, "experts": [expert]}
        for expert, code in enumerate(DOMAINS)
    ]
    plan = {"num_experts": 4, "domains": domains, "general_experts": [2, 3]}
    train, held_out = (store.put_file(world / name) for name in ("train.jsonl", "held_out.jsonl"))
    counts = {"by_domain": {code: {"train": 20, "held_out": 8} for code in DOMAINS}}
    corpus = Corpus.objects.create(
        team=caller.team, name="Logs", train=train, held_out=held_out, counts=counts
    )
    parts = {
        "model_version": version.pk, "layout": layout.pk, "corpus": corpus.pk,
        "domain_map": map_create(caller=caller, name="Map", plan=plan).pk,
    }  # fmt: skip
    sizes = {name: value for name, value in plain.items() if name not in ("layout", "routing")}

    def make(**changes: Any) -> dict[str, Any]:
        return {**parts, "tune": {**sizes, **changes}}

    return make


def _model_spec(world: Path) -> Any:
    from moe_core.checkpoint.inspect import inspect_dir

    return inspect_dir(world / "model")["spec"]


def submit(stack: Any, spec: dict[str, Any]) -> Job:
    return job_submit(caller=stack.people.owner, kind="tune", spec=spec)


def ended(job: Job) -> Job:
    return until("result", job_in(job, "succeeded", "failed", "quarantined"), PATIENCE_S)


def test_a_run_whose_workers_are_killed_twice_ends_with_the_same_files(stack, request_for) -> None:
    stack.reconciler()
    stack.worker("clean")
    clean = ended(submit(stack, request_for()))
    assert clean.state == "succeeded", clean.error
    killed = submit(stack, request_for())
    for number, stage in enumerate(("specialise", "route"), start=1):
        until(
            f"checkpoint in {stage}",
            lambda stage=stage: Checkpoint.objects.filter(job=killed, stage=stage, step__gte=2).exists(),
            PATIENCE_S,
        )
        os.kill(stack.processes[f"worker-{'clean' if number == 1 else number}"].pid, signal.SIGKILL)
        until("end of the child", lambda: not children_in(stack.folder), 10)
        stack.worker(str(number + 1))
    again = ended(killed)
    assert again.state == "succeeded", again.error
    assert again.attempts == 3
    assert again.result_version.files == clean.result_version.files, "the bytes differ"
    assert again.result["tuning"] == clean.result["tuning"], "the figures differ"
    assert again.result_version.number == 3
    assert again.result_version.parent_id == again.base_version_id
    assert JobEvent.objects.filter(job=killed, kind="log", payload__text__startswith="resumed").exists()
    check_invariants(stack.folder)


def test_a_cancelled_run_stops_within_a_step_and_leaves_no_version(stack, request_for) -> None:
    stack.reconciler()
    stack.worker("a")
    job = submit(stack, request_for(specialise_steps=5000))
    until(
        "step",
        lambda: JobEvent.objects.filter(job=job, kind="step", payload__stage="specialise").count() >= 2,
    )
    job_cancel(caller=stack.people.owner, job_id=job.pk)
    until("end", job_in(job, "cancelled"), 20)
    assert ModelVersion.objects.count() == 1
    check_invariants(stack.folder)
