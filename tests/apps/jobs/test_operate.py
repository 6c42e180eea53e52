"""Operations on experts as jobs: checked before they wait, frozen, shown with what they did."""

from __future__ import annotations

import pytest

from common.errors import Invalid
from jobs.models import Job, JobArtifact
from jobs.operation_forms import FORMS
from jobs.services import job_submit
from moe_core.spec import operations
from moe_core.spec.operate import OperateSpec
from moe_core.spec.quantisation import ExpertQuantSpec
from tests.apps.jobs.fixtures import tune_request
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
OPERATION_SPECS = [
    one for one in vars(operations).values() if hasattr(one, "model_fields") and "kind" in one.model_fields
]
GROW = {"kind": "grow", "num_experts": 8}
REPORT = {
    "kind": "remove",
    "experts": [1, 2],
    "keeps_function": False,
    "loss_before": {"support": 2.0, "copy": 3.0},
    "loss_after": {"support": 2.4, "copy": 2.9},
    "kl": {"support": 0.2, "copy": 0.1},
    "same_best_token": {"support": 0.9, "copy": 0.8},
}


@pytest.fixture
def mixture(people, tmp_path):
    return make_version(people, tmp_path, spec=moe_spec(), name="Mixture")


def operate(people, version, operation, **more) -> Job:
    spec = {"model_version": version.pk, "operation": operation, **more}
    return job_submit(caller=people.owner, kind="operate", spec=spec)


def test_an_operation_is_frozen_with_every_default(people, mixture) -> None:
    job = operate(people, mixture, GROW)
    assert job.inputs["operate"]["operation"] == {"kind": "grow", "num_experts": 8, "method": "twin"}
    assert job.inputs["operate"]["num_threads"] >= 1
    assert job.base_version_id == mixture.pk
    assert not JobArtifact.objects.filter(job=job).exists()


def test_logs_are_frozen_by_their_hashes(people, mixture, tmp_path) -> None:
    corpus = tune_request(people, tmp_path)["corpus"]
    job = operate(people, mixture, {"kind": "distil", "num_experts": 2}, corpus=corpus)
    linked = dict(JobArtifact.objects.filter(job=job).values_list("name", "artifact_id"))
    assert linked == {
        "train.jsonl": job.inputs["corpus"]["train"],
        "held_out.jsonl": job.inputs["corpus"]["held_out"],
    }


@pytest.mark.parametrize(
    ("operation", "more", "field"),
    [
        ({"kind": "grow", "num_experts": 10**9}, {}, "operation.grow.num_experts"),
        ({"kind": "explode"}, {}, "operation"),
        ({"kind": "quantise", "quantisation": {"bits": 3}}, {}, "operation.quantise.quantisation.bits"),
        ({"kind": "distil", "num_experts": 2}, {}, "corpus"),
        ({"kind": "compose", "domains": ["a", "b"]}, {}, "operation.domains"),
        ({"kind": "upcycle", "layout": {"moe_layers": [0]}}, {}, "model_version"),
        (GROW, {"options": {"prompt_tokens": 0}}, "prompt_tokens"),
        (GROW, {"surprise": 1}, "surprise"),
    ],
)
def test_what_does_not_fit_is_named(people, mixture, operation, more, field) -> None:
    with pytest.raises(Invalid) as refused:
        operate(people, mixture, operation, **more)
    assert field in refused.value.fields
    assert not Job.objects.exists()


def test_more_versions_are_for_composing_alone(people, mixture) -> None:
    with pytest.raises(Invalid) as refused:
        operate(people, mixture, GROW, others=[mixture.pk])
    assert "others" in refused.value.fields


def test_a_dense_version_has_no_experts_to_change(people, tmp_path) -> None:
    dense = tune_request(people, tmp_path)["model_version"]
    with pytest.raises(Invalid) as refused:
        job_submit(caller=people.owner, kind="operate", spec={"model_version": dense, "operation": GROW})
    assert "model_version" in refused.value.fields


def test_a_stranger_to_the_team_finds_no_version(people, mixture) -> None:
    reply = people.client("outsider").post(
        "/api/v1/jobs/",
        {"kind": "operate", "spec": {"model_version": mixture.pk, "operation": GROW}},
        content_type="application/json",
    )
    assert reply.status_code in (403, 404)


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("kind", sorted(FORMS))
def test_each_form_is_whole_in_both_languages(people, mixture, kind, language) -> None:
    client = people.client("owner")
    client.cookies["django_language"] = language
    page = client.get(f"/jobs/operate/?operation={kind}").content.decode()
    assert str(FORMS[kind].title) in page if language == "en" else page
    assert page.count('aria-current="true"') >= 1


def test_a_form_starts_its_job(people, mixture) -> None:
    asked = {"model_version": mixture.pk, "num_experts": 8, "method": "split"}
    reply = people.client("owner").post("/jobs/operate/?operation=grow", asked)
    job = Job.objects.get()
    assert reply.url == f"/jobs/{job.pk}/"
    assert job.inputs["operate"]["operation"]["method"] == "split"


def test_a_complaint_stands_beside_its_field(people, mixture) -> None:
    reply = people.client("owner").post(
        "/jobs/operate/?operation=merge",
        {"model_version": mixture.pk, "first": 0, "second": 5000, "weights": "even"},
    )
    assert reply.status_code == 422
    assert "1023" in reply.content.decode()


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_the_page_shows_what_every_domain_lost(people, mixture, language) -> None:
    job = operate(people, mixture, {"kind": "remove"})
    Job.objects.filter(pk=job.pk).update(
        state="succeeded", ended_at=job.created_at, result={"operation": REPORT}
    )
    client = people.client("teammate")
    client.cookies["django_language"] = language
    page = client.get(f"/jobs/{job.pk}/").content.decode()
    assert "+0.400" in page and "0.2000" in page
    if language == "en":
        assert "by 0.400 nats a token" in page


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_a_form_begins_with_what_the_specification_would_take(people, mixture, kind) -> None:
    """Left as it is, the form asks for what an empty request would get."""
    schema = next(one for one in OPERATION_SPECS if one.model_fields["kind"].default == kind)
    form = FORMS[kind](team=people.owner.team)
    fields = {**schema.model_fields, **(ExpertQuantSpec.model_fields if kind == "quantise" else {})}
    compared = 0
    for name, field in form.fields.items():
        options = OperateSpec.model_fields if name in form.OPTIONS else fields
        if name in options and not options[name].is_required() and name not in ("kind", "quantisation"):
            assert form.get_initial_for_field(field, name) == options[name].default, name
            compared += 1
    assert compared >= 2


def test_numbers_that_hang_on_the_version_fit_it(people, mixture) -> None:
    chosen = {"model_version": str(mixture.pk)}
    grow, distil = (FORMS[kind](team=people.owner.team, initial=chosen) for kind in ("grow", "distil"))
    assert grow["num_experts"].value() == 2 * mixture.num_experts
    assert distil["num_experts"].value() == mixture.num_experts // 2
