"""A job is what it was asked to be on the day it was submitted: checked, frozen, and rung for once it is committed."""

from __future__ import annotations

import pytest

from accounts.models import AuditEvent
from common.errors import Busy, Forbidden, Invalid, NotFound
from common.models import OutboxEvent
from common.outbox import deliver_due
from jobs.models import Job, JobArtifact, JobEvent
from jobs.services import job_clone, job_submit
from layouts.services import layout_revise
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import QuantiseSpec
from tests.apps.jobs.fixtures import IMPORT, tune_request
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db


def test_an_import_starts_queued_with_its_event_its_bell_and_its_audit_line(people, rung) -> None:
    job = job_submit(caller=people.owner, kind="import", spec=IMPORT)
    assert (job.state, job.name, job.attempts, job.last_seq) == ("queued", "SmolLM2", 0, 1)
    assert job.inputs["licence"] == "Apache-2.0"
    assert JobEvent.objects.get(job=job).payload == {"state": "queued", "reason": ""}
    assert AuditEvent.objects.filter(action="job.submitted", target=str(job)).count() == 1
    assert OutboxEvent.objects.get(topic="jobs.ring").payload == {"job": job.pk}
    deliver_due()
    assert rung == [[job.pk]]
    assert Job.objects.get(pk=job.pk).rung_at is not None


def test_a_refused_submit_rings_for_nothing(people) -> None:
    with pytest.raises(Invalid):
        job_submit(caller=people.owner, kind="import", spec={"name": ""})
    assert not OutboxEvent.objects.exists()
    assert not Job.objects.exists()


def test_a_tuning_job_freezes_layout_map_and_hashes(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    job = job_submit(caller=people.owner, kind="tune", spec=request)
    layout_revise(
        caller=people.owner, layout_id=request["layout"], expected_revision=1,
        spec={"moe_layers": [2], "num_experts": 4, "top_k": 1},
    )  # fmt: skip
    job.refresh_from_db()
    assert job.inputs["layout"]["spec"]["moe_layers"] == [1, 3]
    assert job.inputs["tune"]["routing"]["domains"][0]["experts"] == [0]
    assert job.inputs["tune"]["layout"]["num_experts"] == 4
    assert job.inputs["tune"]["num_threads"] >= 1
    assert job.base_version_id == request["model_version"]
    linked = dict(JobArtifact.objects.filter(job=job).values_list("name", "artifact_id"))
    assert linked == {
        "train.jsonl": job.inputs["corpus"]["train"],
        "held_out.jsonl": job.inputs["corpus"]["held_out"],
    }


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tune": {"route_steps": 10**9}}, "tune.route_steps"),
        ({"tune": {"route_steps": -1}}, "tune.route_steps"),
        ({"tune": {"route_learning_rate": float("inf")}}, "tune.route_learning_rate"),
        ({"tune": {"epochs": 3}}, "tune.epochs"),
        ({"tune": {"balance_form": "sometimes"}}, "tune.balance_form"),
        ({"surprise": 1}, "surprise"),
        ({"layout": None}, "layout"),
        ({"model_version": "x"}, "model_version"),
    ],
)
def test_a_wrong_field_is_named(people, tmp_path, change, field) -> None:
    with pytest.raises(Invalid) as refused:
        job_submit(caller=people.owner, kind="tune", spec={**tune_request(people, tmp_path), **change})
    assert field in refused.value.fields


def test_the_form_of_the_balance_loss_is_asked_for(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    fields = {"balance_form": "global", "importance_weight": 0.5}
    job = job_submit(
        caller=people.owner, kind="tune", spec={**request, "tune": {**request["tune"], **fields}}
    )
    assert {name: job.inputs["tune"][name] for name in fields} == fields


def test_a_map_that_does_not_fit_the_layout_is_refused(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    layout_revise(
        caller=people.owner, layout_id=request["layout"], expected_revision=1,
        spec={"moe_layers": [1], "num_experts": 2, "top_k": 1},
    )  # fmt: skip
    with pytest.raises(Invalid, match="2 experts"):
        job_submit(caller=people.owner, kind="tune", spec=request)


def test_a_mixture_is_tuned_without_a_layout(people, tmp_path) -> None:
    mixture = make_version(people, tmp_path, name="Mixture", spec=moe_spec(num_experts=4))
    request = {**tune_request(people, tmp_path), "model_version": mixture.pk, "layout": None}
    job = job_submit(caller=people.owner, kind="tune", spec=request)
    assert job.inputs["layout"] is None
    assert job.inputs["tune"]["layout"] is None


@pytest.mark.parametrize("part", ["model_version", "layout", "domain_map", "corpus"])
def test_parts_of_another_team_do_not_exist(people, tmp_path, part) -> None:
    mine, theirs = tune_request(people, tmp_path), tune_request(people, tmp_path, who="outsider")
    with pytest.raises(NotFound):
        job_submit(caller=people.owner, kind="tune", spec={**mine, part: theirs[part]})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (moe_spec(num_experts=4, gate={"kind": "soft"}), "cannot be tuned"),
        (moe_spec(num_experts=4, gate={"kind": "expert_choice"}), "cannot be tuned"),
        (foreseen(moe_spec(num_experts=4), QuantiseSpec()), "packed in 4 bits"),
    ],
    ids=["soft", "expert_choice", "packed"],
)
def test_what_cannot_be_tuned_is_refused_at_once(people, tmp_path, spec, words) -> None:
    mixture = make_version(people, tmp_path, spec=spec, name="Mixture")
    request = {**tune_request(people, tmp_path), "model_version": mixture.pk, "layout": None}
    with pytest.raises(Invalid) as refused:
        job_submit(caller=people.owner, kind="tune", spec=request)
    assert list(refused.value.fields) == ["model_version"]
    assert words in refused.value.fields["model_version"]


def test_a_viewer_may_not_submit(people) -> None:
    with pytest.raises(Forbidden):
        job_submit(caller=people.teammate, kind="import", spec=IMPORT)


def test_a_team_has_a_limit_of_open_jobs(people, monkeypatch) -> None:
    monkeypatch.setattr("jobs.services.MAX_OPEN_JOBS", 2)
    for _ in range(2):
        job_submit(caller=people.owner, kind="import", spec=IMPORT)
    with pytest.raises(Busy):
        job_submit(caller=people.owner, kind="import", spec=IMPORT)
    job_submit(caller=people.outsider, kind="import", spec=IMPORT)


def test_a_clone_is_a_new_job_with_the_same_specification(people, job) -> None:
    clone = job_clone(caller=people.owner, job_id=job.pk)
    assert clone.pk != job.pk
    assert (clone.spec, clone.kind, clone.state, clone.cloned_from_id) == (
        job.spec,
        "import",
        "queued",
        job.pk,
    )


def test_an_unknown_builtin_names_those_that_there_are(people) -> None:
    source = {"kind": "builtin", "name": "gpt-17"}
    with pytest.raises(NotFound, match="smollm2-135m-instruct"):
        job_submit(caller=people.owner, kind="import", spec={"name": "x", "source": source})


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc", "relative", "{root}/../secret", "{root}/link", "/\0"]
)
def test_a_folder_outside_the_import_roots_is_refused(people, settings, tmp_path, path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.mkdir()
    (root / "link").symlink_to(secret)
    settings.IMPORT_ROOTS = [root.resolve()]
    spec = {"name": "x", "source": {"kind": "folder", "path": path.format(root=root)}}
    with pytest.raises(Invalid) as refused:
        job_submit(caller=people.owner, kind="import", spec=spec)
    assert refused.value.fields == {"source.path": refused.value.message}


def test_a_folder_below_a_root_is_taken(people, settings, tmp_path) -> None:
    settings.IMPORT_ROOTS = [tmp_path.resolve()]
    (tmp_path / "model").mkdir()
    spec = {"name": "x", "source": {"kind": "folder", "path": str(tmp_path / "model")}}
    assert job_submit(caller=people.owner, kind="import", spec=spec).inputs["path"] == str(tmp_path / "model")
