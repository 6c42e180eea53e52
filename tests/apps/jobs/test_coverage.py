"""Logs that cannot teach a map are refused before a job waits for them; weak ones are told, and counted on the form."""

from __future__ import annotations

import pytest

from common.errors import Invalid
from corpora.models import Corpus
from jobs.coverage import Effort, coverage_of
from jobs.models import Job
from jobs.services import job_submit
from moe_core.spec import RoutingSpec
from tests.apps.jobs.fixtures import PLAN, tune_request

EFFORT = Effort(specialise_steps=16, route_steps=16, tokens_per_batch=1024)
MAP = RoutingSpec.parse({name: PLAN[name] for name in ("domains", "general_experts")})


def counts(**sides: tuple[int, int]) -> dict:
    return {"by_domain": {code: {"train": train, "held_out": held} for code, (train, held) in sides.items()}}


def test_logs_of_every_domain_are_enough() -> None:
    found = coverage_of(MAP, counts(support=(80, 20), copy=(90, 21)), EFFORT, colours={"copy": 4})
    assert (found.state, found.refusals, found.warnings) == ("ok", (), ())
    assert [(row.code, row.train, row.held_out, row.state) for row in found.rows] == [
        ("support", 80, 20, "ok"), ("copy", 90, 21, "ok"),
    ]  # fmt: skip
    assert found.rows[1].colour == 4


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        (counts(support=(80, 20)), "no row to train on of copy"),
        (counts(support=(80, 20), copy=(0, 9)), "no row to train on of copy"),
        (counts(service=(80, 20), sales=(9, 9)), "the map has support, copy, the logs have sales, service"),
        ({"by_domain": {"": {"train": 99, "held_out": 9}}}, "say on the page of the logs"),
        (counts(support=(80, 0), copy=(80, 0)), "No row of a mapped domain is held out"),
        ({}, "no row of a domain of the map"),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(logs, words) -> None:
    found = coverage_of(MAP, logs, EFFORT)
    assert found.state == "danger"
    assert words in " ".join(found.refusals)


def test_a_domain_whose_expert_learns_from_another_needs_rows_for_the_router_alone() -> None:
    both = {"code": "both", "name_en": "Both", "name_zh": "两者", "experts": [0, 1]}
    routing = RoutingSpec.parse({"domains": [*PLAN["domains"], both]})
    logs = counts(support=(80, 20), copy=(80, 20))
    assert "both" in coverage_of(routing, logs, EFFORT).refusals[0]
    assert coverage_of(routing, logs, Effort(16, 0, 1024)).refusals == ()


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        (counts(support=(80, 20), copy=(12, 20)), "Few rows to train on: copy (12)."),
        (counts(support=(80, 20), copy=(80, 3)), "the verdict will be noisy: copy (3)."),
        (counts(support=(80, 20), copy=(80, 0)), "No row of copy is held out"),
        (counts(support=(80, 20), copy=(80, 20), legal=(1000, 200)), "1,200 rows are of domains"),
        (
            {**counts(support=(80, 20), copy=(80, 20)), "about_tokens": {"support": 400, "copy": 40_000}},
            "support (41×)",
        ),
    ],
)
def test_what_is_weak_is_told_and_goes_on(logs, words) -> None:
    found = coverage_of(MAP, logs, EFFORT)
    assert (found.state, found.refusals) == ("caution", ())
    assert words in " ".join(found.warnings)


@pytest.mark.django_db
def test_a_job_that_cannot_work_is_never_made(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    Corpus.objects.update(counts=counts(support=(80, 20)))
    with pytest.raises(Invalid, match="no row to train on of copy") as refused:
        job_submit(caller=people.owner, kind="tune", spec=request)
    assert (refused.value.code, list(refused.value.fields)) == ("logs_do_not_fit", ["corpus"])
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_a_job_keeps_the_rows_that_it_began_with(people, tmp_path) -> None:
    job = job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))
    assert job.inputs["corpus"]["coverage"]["copy"] == {"train": 20, "held_out": 8}


@pytest.mark.django_db
def test_the_api_refuses_with_the_sentence(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    Corpus.objects.update(counts={})
    reply = people.client("owner").post(
        "/api/v1/jobs/", {"kind": "tune", "spec": request}, content_type="application/json"
    )
    assert reply.status_code == 422
    assert "no row of a domain of the map" in reply.json()["detail"]


@pytest.mark.django_db
def test_the_form_shows_the_rows_and_refuses_in_the_readers_language(people, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    page = people.client("owner").get("/jobs/tune/").content.decode()
    assert 'id="coverage"' in page
    assert "few rows" in page
    Corpus.objects.update(counts=counts(support=(80, 20)))
    chosen = {name: request[name] for name in ("domain_map", "corpus")}
    part = people.client("owner").get("/jobs/tune/coverage/", chosen, headers={"accept-language": "zh-hans"})
    assert "没有" in part.content.decode()
    assert "copy" in part.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("value", ["", "x", "0", "9" * 30])
def test_a_part_that_does_not_exist_shows_no_rows(people, tmp_path, value) -> None:
    tune_request(people, tmp_path)
    part = people.client("owner").get("/jobs/tune/coverage/", {"corpus": value, "domain_map": "1"})
    assert part.status_code == 200
    assert "<table" not in part.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("operation", "field", "words"),
    [
        ({"kind": "specialise_clone", "domain": "legal"}, "operation.domain", "copy, support"),
    ],
)
def test_an_operation_learns_only_from_domains_that_the_logs_have(people, tmp_path, operation, field, words):
    request = tune_request(people, tmp_path)
    from tests.apps.registry.fixtures import make_version, moe_spec

    mixture = make_version(people, tmp_path, name="Mixture", spec=moe_spec(num_experts=4))
    spec = {"model_version": mixture.pk, "corpus": request["corpus"], "operation": operation}
    with pytest.raises(Invalid, match=words) as refused:
        job_submit(caller=people.owner, kind="operate", spec=spec)
    assert list(refused.value.fields) == [field]


@pytest.mark.django_db
def test_a_form_that_begins_with_a_mixture_lays_no_layout_over_it(people, tmp_path):
    from jobs.tune_form import TuneForm
    from tests.apps.registry.fixtures import make_version, moe_spec

    request = tune_request(people, tmp_path)
    dense = TuneForm(team=people.owner.team, initial={"model_version": str(request["model_version"])})
    assert dense["layout"].value() == request["layout"]
    mixture = make_version(people, tmp_path, name="Mixture", spec=moe_spec(num_experts=4))
    form = TuneForm(team=people.owner.team, initial={"model_version": str(mixture.pk)})
    assert form["layout"].value() == ""


@pytest.mark.django_db
def test_logs_of_which_nothing_is_held_out_are_refused_once_beside_their_field(people, tmp_path):
    request = tune_request(people, tmp_path)
    Corpus.objects.update(held_out=None)
    from jobs.tune_form import TuneForm

    form = TuneForm(team=people.owner.team)
    sent = {name: form[name].value() for name in form.fields if form[name].value() is not None}
    sent |= {"dtype": "auto", **{name: request[name] for name in TuneForm.PARTS}}
    page = people.client("owner").post("/jobs/tune/", sent)
    assert page.status_code == 422
    assert page.content.decode().count("none is held out to measure on") == 1
    assert "id_corpus_error" in page.content.decode()
