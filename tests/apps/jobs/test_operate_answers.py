"""Whatever is asked of whichever model, the answer is 202 or 422 with sentences, and never a fault of ours."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import Invalid
from jobs.models import Job
from jobs.services import job_submit
from moe_core.spec import ModelSpec
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import OPERATION, GrowSpec
from tests.apps.jobs.fixtures import make_corpus
from tests.apps.registry.fixtures import DENSE, make_version, moe_spec
from tests.moe_core.tiny import FAMILIES, tiny_family

pytestmark = pytest.mark.django_db
QUANTISE = {"kind": "quantise", "attention": {"bits": 8}, "head": {"bits": 8}}
MANY_GROUPS = {"kind": "sigmoid_groups", "num_groups": 512, "topk_group": 4, "group_score": "best"}
MODELS: dict[str, ModelSpec] = {
    "dense": DENSE,
    "mixture": moe_spec(),
    "most experts": moe_spec(num_experts=1024),
    "many groups": moe_spec(num_experts=1024, gate=MANY_GROUPS),
    "wide choice": moe_spec(num_experts=64, top_k=48),
    "top_p": moe_spec(gate={"kind": "top_p"}),
    "soft": moe_spec(gate={"kind": "soft"}),
    "one": moe_spec(num_experts=1, top_k=1),
    "twins": foreseen(moe_spec(), GrowSpec(num_experts=16)),
    "packed": foreseen(moe_spec(), OPERATION.parse({"kind": "quantise"})),
    "packed whole": foreseen(moe_spec(), OPERATION.parse(QUANTISE)),
    **{family: tiny_family(family) for family in FAMILIES},
}
LAYOUT = {"moe_layers": [1, 3], "num_experts": 4}
DOMAINS = {"kind": "compose", "domains": ["copy", "support"]}
ASKED: tuple[dict[str, Any], ...] = (
    {"kind": "upcycle", "layout": LAYOUT},
    {"kind": "upcycle", "layout": {"moe_layers": [7]}},
    {"kind": "upcycle", "layout": LAYOUT, "granularity": 64},
    DOMAINS,
    {**DOMAINS, "top_k": 3},
    {**DOMAINS, "moe_layers": [3, 1]},
    {**DOMAINS, "moe_layers": [500]},
    {"kind": "grow", "num_experts": 1024},
    {"kind": "grow", "num_experts": 16, "method": "double_k"},
    {"kind": "grow", "num_experts": 128, "method": "double_k"},
    {"kind": "grow", "num_experts": 1024, "method": "split"},
    {"kind": "release_twins", "hold": 1.0},
    {"kind": "release_twins", "hold": None},
    {"kind": "add"},
    {"kind": "add", "per_group": True},
    {"kind": "add", "source": 1023},
    {"kind": "remove"},
    {"kind": "remove", "expert": [0, 1]},
    {"kind": "remove", "per_group": True},
    {"kind": "merge", "first": 0, "second": 1},
    {"kind": "merge", "first": [0, 1], "second": [1, 1]},
    {"kind": "merge", "first": 0, "second": 1, "per_group": True},
    {"kind": "specialise_clone", "domain": "copy"},
    {"kind": "wake_expert"},
    {"kind": "wake_expert", "expert": 1000},
    {"kind": "quantise"},
    QUANTISE,
    {"kind": "dequantise"},
    {"kind": "distil", "num_experts": 1},
    {"kind": "distil", "num_experts": 2, "num_hidden_layers": 1, "moe_intermediate_size": 8},
    {"kind": "measure"},
)


def test_every_kind_of_operation_is_asked_for() -> None:
    assert {one["kind"] for one in ASKED} == set(OPERATION.json_schema()["discriminator"]["mapping"])


@pytest.mark.parametrize("model", MODELS)
def test_the_answer_is_a_job_or_a_reason(people, tmp_path, monkeypatch, model) -> None:
    monkeypatch.setattr("jobs.services.MAX_OPEN_JOBS", 1000)
    version, corpus = make_version(people, tmp_path, spec=MODELS[model]), make_corpus(people)
    client, answers = people.client("owner"), {}
    for operation in ASKED:
        for logs in (None, corpus.pk) if model in ("dense", "mixture") else (corpus.pk,):
            others = [version.pk] if operation["kind"] == "compose" else []
            spec = {"model_version": version.pk, "operation": operation, "others": others, "corpus": logs}
            sent = {"kind": "operate", "spec": spec}
            reply = client.post("/api/v1/jobs/", sent, content_type="application/json")
            answers[f"{operation} {logs}"] = reply.status_code
            if reply.status_code == 422:
                assert "Input should" not in reply.content.decode(), (operation, reply.json())
    assert set(answers.values()) <= {202, 422}, answers
    assert Job.objects.count() == list(answers.values()).count(202)


@pytest.mark.parametrize(
    ("model", "operation", "field", "words"),
    [
        ("dense", {**DOMAINS, "top_k": 3}, "operation.top_k", "(3)"),
        ("dense", {**DOMAINS, "moe_layers": [3, 1]}, "operation.moe_layers", "ascend"),
        ("most experts", {"kind": "add"}, "operation", "1025"),
        ("most experts", {"kind": "specialise_clone", "domain": "copy"}, "operation", "1025"),
        ("most experts", DOMAINS, "operation", "2048"),
        ("many groups", {"kind": "add", "per_group": True}, "operation", "1536"),
        (
            "wide choice",
            {"kind": "grow", "num_experts": 128, "method": "double_k"},
            "operation.num_experts",
            "48",
        ),
    ],
)
def test_what_cannot_be_says_which_number_and_where(people, tmp_path, model, operation, field, words) -> None:
    version, corpus = make_version(people, tmp_path, spec=MODELS[model]), make_corpus(people)
    others = [version.pk] if operation["kind"] == "compose" else []
    spec = {"model_version": version.pk, "operation": operation, "others": others, "corpus": corpus.pk}
    reply = people.client("owner").post(
        "/api/v1/jobs/", {"kind": "operate", "spec": spec}, content_type="application/json"
    )
    assert reply.status_code == 422
    (told,) = reply.json()["errors"]
    assert told["field"] == field and words in told["message"]


@pytest.mark.parametrize("model", ["packed", "packed whole"])
def test_whatever_was_packed_is_given_back(people, tmp_path, model) -> None:
    version = make_version(people, tmp_path, spec=MODELS[model])
    spec = {"model_version": version.pk, "operation": {"kind": "dequantise"}}
    reply = people.client("owner").post(
        "/api/v1/jobs/", {"kind": "operate", "spec": spec}, content_type="application/json"
    )
    assert reply.status_code == 202, reply.json()


def test_what_needs_no_logs_is_done_without_them(people, tmp_path) -> None:
    mixture = make_version(people, tmp_path, spec=moe_spec())
    for operation in (
        {"kind": "remove", "expert": 1},
        {"kind": "merge", "first": 0, "second": 1, "weights": "even"},
    ):
        asked = {"model_version": mixture.pk, "operation": operation}
        job_submit(caller=people.owner, kind="operate", spec=asked)
    assert Job.objects.count() == 2


def test_only_versions_of_one_shape_are_composed(people, tmp_path) -> None:
    mixture = make_version(people, tmp_path, spec=moe_spec(), name="Mixture").pk
    dense, corpus = make_version(people, tmp_path).pk, make_corpus(people).pk
    spec = {"corpus": corpus, "operation": DOMAINS}
    for first, second in ((dense, mixture), (mixture, dense)):
        asked = {**spec, "model_version": first, "others": [second]}
        with pytest.raises(Invalid) as refused:
            job_submit(caller=people.owner, kind="operate", spec=asked)
        assert set(refused.value.fields) == {"others"}
    for one in (dense, mixture):
        job_submit(caller=people.owner, kind="operate", spec={**spec, "model_version": one, "others": [one]})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"family": "mixtral"}, None),
        ({"eos_token_ids": [3], "bos_token_id": 4, "max_position_embeddings": 7}, None),
        ({"rms_norm_eps": 1e-4}, "(rms_norm_eps)"),
        ({"intermediate_size": 99, "moe": {"top_k": 1}}, "(intermediate_size, moe.top_k)"),
        ({"eos_token_ids": list(range(16))}, "eos_token_ids"),
    ],
)
def test_a_job_composes_what_the_library_composes_and_names_what_differs(
    people, tmp_path, changes: dict[str, Any], told: str | None
) -> None:
    whole = moe_spec(moe_layers=tuple(range(DENSE.num_hidden_layers)), num_experts=4)
    plain = whole.model_dump() | {"eos_token_ids": [20], "family": "turnout_moe"}
    other = {**plain, **changes, "moe": plain["moe"] | changes.get("moe", {})}
    first, second = (
        make_version(people, tmp_path, spec=ModelSpec.parse(each), name=name).pk
        for name, each in (("One", plain), ("Two", other))
    )
    spec = {
        "model_version": first,
        "others": [second],
        "corpus": make_corpus(people).pk,
        "operation": DOMAINS,
    }
    reply = people.client("owner").post(
        "/api/v1/jobs/", {"kind": "operate", "spec": spec}, content_type="application/json"
    )
    if told is None:
        assert reply.status_code == 202, reply.json()
    else:
        [error] = reply.json()["errors"]
        assert error["field"] == "others"
        assert told in error["message"]


@pytest.mark.parametrize(
    ("operation", "field", "words"),
    [
        ({}, "operation", "'kind' is missing"),
        ({"kind": None}, "operation", "'kind' is missing"),
        ({"kind": "grow"}, "operation.num_experts", "missing"),
        (
            {"kind": "upcycle", "layout": {"moe_layers": [0], "gate": {"kind": "top_p", "p": 2.0}}},
            "operation.layout.gate.p",
            "at most 1",
        ),
        ({"kind": "shrink"}, "operation", "“shrink”"),
        ({**DOMAINS, "domains": "copy"}, "operation.domains", "a list"),
    ],
)
def test_what_is_no_operation_is_said_in_plain_words(people, tmp_path, operation, field, words) -> None:
    version = make_version(people, tmp_path)
    spec = {"model_version": version.pk, "operation": operation}
    with pytest.raises(Invalid) as refused:
        job_submit(caller=people.owner, kind="operate", spec=spec)
    assert list(refused.value.fields) == [field] and words in refused.value.fields[field]


@pytest.mark.parametrize("option", ["prompts_per_domain", "num_threads", "zzz"])
def test_a_wrong_option_is_found_among_the_options(people, tmp_path, option: str) -> None:
    version = make_version(people, tmp_path, spec=moe_spec())
    spec = {"model_version": version.pk, "operation": {"kind": "add"}, "options": {option: 0}}
    with pytest.raises(Invalid) as refused:
        job_submit(caller=people.owner, kind="operate", spec=spec)
    assert list(refused.value.fields) == [f"options.{option}"]


NO_ROW = "These logs hold no row to train on of the domain legal."
FEW_ROWS = "These logs have fewer than 4 rows to train on of these domains: copy, support."


@pytest.mark.parametrize(
    ("operation", "counts", "said"),
    [
        ("specialise_clone", {"copy": 20, "": 3, "held": 0}, f"{NO_ROW} They have such rows of: copy."),
        ("specialise_clone", {"": 3}, f"{NO_ROW} None of their rows to train on names a domain."),
        ("compose", {"copy": 3, "support": 1}, f"{FEW_ROWS} They have such rows of: copy, support."),
    ],
)
def test_domains_without_enough_rows_are_told_apart(people, tmp_path, operation, counts, said) -> None:
    corpus = make_corpus(people)
    corpus.counts = {"by_domain": {code: {"train": rows, "held_out": 8} for code, rows in counts.items()}}
    corpus.save()
    version = make_version(people, tmp_path, spec=moe_spec())
    asked, others = {"kind": "specialise_clone", "domain": "legal"}, []
    if operation == "compose":
        asked, others = DOMAINS, [version.pk]
    spec = {"model_version": version.pk, "operation": asked, "others": others, "corpus": corpus.pk}
    with pytest.raises(Invalid) as refused:
        job_submit(caller=people.owner, kind="operate", spec=spec)
    assert list(refused.value.fields.values()) == [said]
