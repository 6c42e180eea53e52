"""A version measured as it is: asked for by form and API, refused where it would say nothing, shown as tables."""

from __future__ import annotations

import pytest

from common.errors import Invalid
from common.figures import percent
from corpora.models import Corpus
from jobs.by_stage import stages_of
from jobs.models import Job
from moe_core.spec import ModelSpec
from registry.models import ModelVersion
from tests.apps.jobs.fixtures import make_corpus, tune_request
from tests.apps.jobs.test_operate import operate
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
MEASURE = {"kind": "measure"}
LAYERS = [
    {"layer": 1, "max_vio": 0.4, "entropy": 0.9, "dead_experts": 1},
    {"layer": 2, "max_vio": 0.2, "entropy": 0.98, "dead_experts": 0},
]
ALONE = {
    "kind": "measure",
    "tokens": {"support": 1200, "copy": 800},
    "loss": {"support": 2.0, "copy": 3.0},
    "routing": {"layers": LAYERS, "mean": {"max_vio": 0.3, "entropy": 0.94, "dead_experts": 0.5}},
    "leading": [
        {"layer": 1, "by_domain": {"support": {"expert": 3, "share": 0.62}, "copy": {"expert": 0, "share": 0.31}}},
        {"layer": 2, "by_domain": {"support": {"expert": 5, "share": 0.5}}},
    ],
    "load": None,
}  # fmt: skip
BESIDE = ALONE | {
    "loss_before": {"support": 1.5, "copy": 3.01},
    "loss_after": ALONE["loss"],
    "kl": {"support": 0.25, "copy": 0.01},
    "same_best_token": {"support": 0.8, "copy": 0.9},
    "routing_before": ALONE["routing"],
}


@pytest.fixture
def mixture(people, tmp_path):
    return make_version(people, tmp_path, spec=moe_spec(), name="Mixture")


def page_of(people, job: Job, report: dict, language: str) -> str:
    Job.objects.filter(pk=job.pk).update(
        state="succeeded", ended_at=job.created_at, result={"operation": report}
    )
    client = people.client("teammate")
    client.cookies["django_language"] = language
    return client.get(f"/jobs/{job.pk}/").content.decode()


def test_it_is_asked_for_over_the_api_and_has_no_stage_that_writes(people, mixture) -> None:
    body = {
        "kind": "operate",
        "spec": {"model_version": mixture.pk, "corpus": make_corpus(people).pk, "operation": MEASURE},
    }
    reply = people.client("owner").post("/api/v1/jobs/", body, content_type="application/json")
    assert reply.status_code == 202
    job = Job.objects.get()
    assert job.is_measuring and job.keeps_nothing and not job.is_preview
    assert [stage.key for stage in stages_of(job)] == ["read", "measure"]


def test_a_dense_and_a_packed_version_are_measured_too(people, tmp_path) -> None:
    asked = tune_request(people, tmp_path)
    dense = ModelVersion.objects.get(pk=asked["model_version"])
    assert operate(people, dense, MEASURE, corpus=asked["corpus"]).is_measuring
    laid = moe_spec().model_dump()
    laid["moe"]["quantisation"] = {"bits": 4, "group_size": 32}
    packed = make_version(people, tmp_path, spec=ModelSpec.parse(laid), name="Packed")
    job = operate(people, packed, MEASURE, corpus=asked["corpus"], others=[packed.pk])
    assert job.inputs["others"] == [{"id": packed.pk, "label": str(packed)}]


@pytest.mark.parametrize("logs", ["none", "nobody held out", "no domain"])
def test_what_it_could_not_measure_on_is_refused_at_once(people, mixture, logs) -> None:
    more = {}
    if logs != "none":
        corpus = make_corpus(people)
        code = "" if logs == "no domain" else "support"
        rows = {code: {"train": 9, "held_out": 0 if code else 4}}
        Corpus.objects.filter(pk=corpus.pk).update(counts={**corpus.counts, "by_domain": rows})
        more = {"corpus": corpus.pk}
    with pytest.raises(Invalid) as refused:
        operate(people, mixture, MEASURE, **more)
    assert list(refused.value.fields) == ["corpus"]


def test_another_tokenizer_and_a_third_version_are_refused(people, mixture, tmp_path) -> None:
    corpus = make_corpus(people).pk
    (tmp_path / "model-owner-Stranger").mkdir()
    (tmp_path / "model-owner-Stranger" / "tokenizer.json").write_text("{}")
    stranger = make_version(people, tmp_path, spec=moe_spec(), name="Stranger")
    with pytest.raises(Invalid, match="another tokenizer") as refused:
        operate(people, mixture, MEASURE, corpus=corpus, others=[stranger.pk])
    assert list(refused.value.fields) == ["others"]
    with pytest.raises(Invalid, match="Name one version"):
        operate(people, mixture, MEASURE, corpus=corpus, others=[mixture.pk, mixture.pk])


def test_the_form_asks_for_a_version_logs_and_one_beside(people, mixture) -> None:
    client, corpus = people.client("owner"), make_corpus(people)
    page = client.get(f"/jobs/operate/?operation=measure&model_version={mixture.pk}").content.decode()
    assert "no version comes of it" in page and 'value="preview"' not in page
    sent = {"model_version": mixture.pk, "corpus": corpus.pk, "others": mixture.pk}
    client.post("/jobs/operate/?operation=measure", sent)
    job = Job.objects.get()
    assert job.spec["others"] == [mixture.pk]
    form = client.get(f"/jobs/operate/?operation=measure&job={job.pk}").context["form"]
    assert form["others"].value() == mixture.pk
    client.post("/jobs/operate/?operation=measure", {**sent, "others": ""})
    assert Job.objects.order_by("pk").last().spec["others"] == []


@pytest.mark.parametrize(
    ("language", "words"),
    [
        (
            "en",
            (
                "The loss is 2.500 nats a token over 2 domains; the highest is that of copy, 3.000.",
                "carries 1.30 times the mean load", "1 expert is asleep.", "Who works for whom", percent(0.62),
            ),
        ),
        ("zh-hans", ("2 个领域的平均损失为每词元 2.500 奈特", "有 1 个专家处于休眠", "谁为谁工作", "62%")),
    ],
)  # fmt: skip
def test_the_page_says_what_was_found(people, mixture, language, words) -> None:
    job = operate(people, mixture, MEASURE, corpus=make_corpus(people).pk)
    page = page_of(people, job, ALONE, language)
    for said in words:
        assert said in page
    assert 'data-seq="6"' in page and 'data-station="save"' not in page
    assert "Loss, the other" not in page


@pytest.mark.parametrize(
    ("language", "words"),
    [
        (
            "en",
            (
                "The loss of 1 of 2 domains is above that of the other version; most of all that of support, by 0.500",
                "Loss, the other", "+0.500", "mean, the other",
            ),
        ),
        ("zh-hans", ("2 个领域中有 1 个的损失高于对照版本", "损失，对照版本", "+0.500")),
    ],
)  # fmt: skip
def test_beside_another_the_page_says_how_far_they_differ(people, mixture, language, words) -> None:
    job = operate(people, mixture, MEASURE, corpus=make_corpus(people).pk, others=[mixture.pk])
    page = page_of(people, job, BESIDE, language)
    for said in words:
        assert said in page


def test_better_and_same_are_said_as_such(people, mixture) -> None:
    job = operate(people, mixture, MEASURE, corpus=make_corpus(people).pk, others=[mixture.pk])
    better = BESIDE | {"loss_before": {"support": 2.5, "copy": 3.0}}
    assert "1 of 2 domains is below" in page_of(people, job, better, "en")
    same = BESIDE | {"loss_before": ALONE["loss"]}
    assert "No domain&#x27;s loss differs" in page_of(people, job, same, "en")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": {"support": None, "copy": 3.0}}, "The loss is no number for support"),
        (
            {**BESIDE, "loss": {"support": None, "copy": 3.0}, "loss_before": {"support": 9.0, "copy": 9.0}},
            "The loss is no number for support",
        ),
        (
            {**BESIDE, "loss_before": {"support": None, "copy": 9.0}},
            "The other version&#x27;s loss is no number for support",
        ),
    ],
)
def test_a_loss_that_is_no_number_is_never_called_the_same(people, mixture, changes, said) -> None:
    job = operate(people, mixture, MEASURE, corpus=make_corpus(people).pk, others=[mixture.pk])
    page = page_of(people, job, ALONE | changes, "en")
    assert said in page and "by more than chance" not in page and "is below" not in page


def test_a_preview_of_a_measurement_is_nothing_that_could_be_done_for_good(people, mixture) -> None:
    job = operate(people, mixture, MEASURE, corpus=make_corpus(people).pk, options={"preview": True})
    assert "Do it for good" not in page_of(people, job, ALONE, "en")
