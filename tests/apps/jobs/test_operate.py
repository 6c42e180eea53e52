"""Operations on experts as jobs: checked before they wait, frozen, shown with what they did."""

from __future__ import annotations

import pytest

from common.errors import Invalid
from jobs.models import Job, JobArtifact
from jobs.operation_forms import FORMS
from jobs.quantise_form import TRUNK_OWN
from jobs.services import job_submit
from moe_core.spec import operations
from moe_core.spec.foresee import foreseen
from moe_core.spec.operate import OperateSpec
from moe_core.spec.operations import OPERATION
from moe_core.spec.quantisation import ExpertQuantSpec
from registry.operated import OPERATIONS
from tests.apps.jobs.fixtures import tune_request
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
OPERATION_SPECS = [
    one for one in vars(operations).values() if hasattr(one, "model_fields") and "kind" in one.model_fields
]
GROW = {"kind": "grow", "num_experts": 16}
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
    assert job.inputs["operate"]["operation"] == {"kind": "grow", "num_experts": 16, "method": "twin"}
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
        ({"kind": "grow", "num_experts": 10**9}, {}, "operation.num_experts"),
        ({"kind": "explode"}, {}, "operation"),
        ({"kind": "quantise", "quantisation": {"bits": 3}}, {}, "operation.quantisation.bits"),
        ({"kind": "distil", "num_experts": 2}, {}, "corpus"),
        ({"kind": "compose", "domains": ["a", "b"]}, {}, "operation.domains"),
        ({"kind": "upcycle", "layout": {"moe_layers": [0]}}, {}, "model_version"),
        ({"kind": "release_twins"}, {}, "operation"),
        ({"kind": "release_twins", "hold": -1}, {}, "operation.hold"),
        ({"kind": "dequantise"}, {}, "operation"),
        (GROW, {"options": {"prompt_tokens": 0}}, "options.prompt_tokens"),
        (GROW, {"surprise": 1}, "surprise"),
        ({"kind": "remove"}, {}, "corpus"),
        ({"kind": "remove", "expert": 1, "max_loss_increase": 0.5}, {}, "corpus"),
        ({"kind": "merge", "first": 0, "second": 1}, {}, "corpus"),
        (
            {"kind": "merge", "first": 0, "second": 1, "weights": "even", "max_loss_increase": 1},
            {},
            "corpus",
        ),
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
    asked = {"model_version": mixture.pk, "num_experts": 16, "method": "split"}
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
    job = operate(people, mixture, {"kind": "remove", "expert": 1})
    Job.objects.filter(pk=job.pk).update(
        state="succeeded", ended_at=job.created_at, result={"operation": REPORT}
    )
    client = people.client("teammate")
    client.cookies["django_language"] = language
    page = client.get(f"/jobs/{job.pk}/").content.decode()
    assert "+0.400" in page and "0.2000" in page
    if language == "en":
        assert "by 0.400 nats a token" in page


def test_every_kind_of_operation_has_a_form_and_a_name() -> None:
    kinds = {one.model_fields["kind"].default for one in OPERATION_SPECS}
    assert set(FORMS) == kinds == set(OPERATIONS)


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_a_form_begins_with_what_the_specification_would_take(people, mixture, kind) -> None:
    """Left as it is, the form asks for what an empty request would get."""
    schema = next(one for one in OPERATION_SPECS if one.model_fields["kind"].default == kind)
    form = FORMS[kind](team=people.owner.team)
    fields = {**schema.model_fields, **(ExpertQuantSpec.model_fields if kind == "quantise" else {})}
    compared = 0
    for name, field in form.fields.items():
        options = OperateSpec.model_fields if name in form.OPTIONS else fields
        of_machine = ("kind", "quantisation", "num_threads")
        if name in options and not options[name].is_required() and name not in of_machine:
            assert form.get_initial_for_field(field, name) == options[name].default, name
            compared += 1
    assert compared >= 2


def test_numbers_that_hang_on_the_version_fit_it(people, mixture) -> None:
    chosen = {"model_version": str(mixture.pk)}
    grow, distil = (FORMS[kind](team=people.owner.team, initial=chosen) for kind in ("grow", "distil"))
    assert grow["num_experts"].value() == 2 * mixture.num_experts
    assert distil["num_experts"].value() == mixture.num_experts // 2


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_a_form_asks_for_everything_that_its_specification_can_be_told(people, mixture, kind) -> None:
    schema = next(one for one in OPERATION_SPECS if one.model_fields["kind"].default == kind)
    wanted = set(schema.model_fields) - {"kind"}
    if kind == "quantise":
        wanted = wanted - {"quantisation"} | set(ExpertQuantSpec.model_fields) | set(TRUNK_OWN)
    form = FORMS[kind](team=people.owner.team)
    own = {field.name for field in [*form.own_fields, *form.more_fields]}
    assert own == wanted | ({"others"} if kind in ("compose", "measure") else set())
    assert set(form.OPTIONS) == set(OperateSpec.model_fields) - {"operation", "preview"}


TYPED = {
    "grow": ({"num_experts": "16", "method": "double_k"}, {"num_experts": 16, "method": "double_k"}),
    "add": ({"source": "2"}, {"source": 2}),
    "remove": ({"expert": "1, 3", "max_loss_increase": "0.5"}, {"expert": [1, 3], "max_loss_increase": 0.5}),
    "merge": ({"first": "1", "second": "0，2", "weights": "even"}, {"first": 1, "second": [0, 2], "weights": "even"}),
    "specialise_clone": (
        {"domain": "copy", "source": "1", "steps": "3", "learning_rate": "0.01", "batch_prompts": "2", "gate_weight": "0", "seed": "5"},
        {"domain": "copy", "source": 1, "steps": 3, "learning_rate": 0.01, "batch_prompts": 2, "gate_weight": 0.0, "seed": 5},
    ),
    "quantise": (
        {"bits": "8", "group_size": "32", "symmetric": "off"},
        {"quantisation": {"bits": 8, "group_size": 32, "symmetric": False, "super_group_size": None}},
    ),
    "distil": (
        {"num_experts": "2", "top_k": "1", "moe_intermediate_size": "8", "steps": "3", "learning_rate": "0.01",
         "router_learning_rate": "0.1", "clip_norm": "2", "router_clip_norm": "3", "batch_prompts": "2", "temperature": "1",
         "logit_weight": "0", "router_weight": "0.2", "label_weight": "1", "seed": "4"},
        {"num_experts": 2, "top_k": 1, "moe_intermediate_size": 8, "steps": 3, "learning_rate": 0.01,
         "router_learning_rate": 0.1, "clip_norm": 2.0, "router_clip_norm": 3.0, "batch_prompts": 2, "temperature": 1.0,
         "logit_weight": 0.0, "router_weight": 0.2, "label_weight": 1.0, "seed": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(TYPED))
def test_everything_that_is_typed_is_what_the_job_is_told(people, mixture, tmp_path, kind) -> None:
    typed, wanted = TYPED[kind]
    corpus = tune_request(people, tmp_path)["corpus"]
    sent = {
        "model_version": mixture.pk,
        "corpus": corpus,
        "prompt_tokens": "32",
        "dtype": "float32",
        "num_threads": "2",
    }
    reply = people.client("owner").post(f"/jobs/operate/?operation={kind}", {**sent, **typed})
    assert reply.status_code == 302, reply.context["form"].errors
    told = Job.objects.get().inputs["operate"]
    for name, value in wanted.items():
        assert told["operation"][name] == value, name
    assert (told["prompt_tokens"], told["dtype"], told["num_threads"]) == (32, "float32", 2)
    assert told["preview"] is False
    # The form of another try begins with what this one was asked.
    again = (
        people.client("owner")
        .get(f"/jobs/operate/?operation={kind}&job={Job.objects.get().pk}")
        .context["form"]
    )
    for name, value in typed.items():
        shown = again[name].value()
        if name == "symmetric":
            assert shown is False
        elif "," in value or "，" in value:
            assert shown == value.replace("，", ", ")
        else:
            assert str(shown) in (value, f"{value}.0"), name


def test_composing_and_laying_take_all_of_their_options(people, mixture, tmp_path) -> None:
    request = tune_request(people, tmp_path)
    client = people.client("owner")
    dense = request["model_version"]
    laid = {
        "model_version": dense,
        "layout": request["layout"],
        "granularity": "2",
        "noise": "0.1",
        "router_std": "0.05",
        "seed": "3",
    }
    assert client.post("/jobs/operate/?operation=upcycle", laid).status_code == 302
    told = Job.objects.get().inputs["operate"]["operation"]
    assert (told["granularity"], told["noise"], told["router_std"], told["seed"]) == (2, 0.1, 0.05, 3)
    composed = {
        "model_version": dense, "others": [dense], "corpus": request["corpus"], "domains": "support, copy", "top_k": "2",
        "gate": "logistic", "trunk": "mean", "ridge": "0.5", "moe_layers": "1-2",
    }  # fmt: skip
    reply = client.post("/jobs/operate/?operation=compose", composed)
    assert reply.status_code == 302, reply.context["form"].errors
    told = Job.objects.order_by("-pk")[0].inputs["operate"]["operation"]
    assert (told["domains"], told["moe_layers"], told["gate"]) == (["support", "copy"], [1, 2], "logistic")
    assert (told["trunk"], told["ridge"], told["top_k"]) == ("mean", 0.5, 2)


def test_only_versions_that_fit_are_offered(people, mixture, tmp_path) -> None:
    packed = make_version(
        people,
        tmp_path,
        name="Packed",
        spec=foreseen(moe_spec(), OPERATION.validate_python({"kind": "quantise"})),
    )
    offered = {kind: {pk for pk, _words in FORMS[kind](team=people.owner.team).versions} for kind in FORMS}
    assert offered["dequantise"] == {packed.pk}
    assert offered["remove"] == offered["quantise"] == offered["grow"] == {mixture.pk}
    assert offered["upcycle"] == set()
    job = operate(people, packed, {"kind": "dequantise"})
    assert job.inputs["operate"]["operation"] == {"kind": "dequantise"}


@pytest.mark.parametrize(
    ("kind", "typed", "field"),
    [
        ("grow", {"num_experts": "6"}, "num_experts"),
        ("add", {"source": "9"}, "source"),
        ("remove", {"expert": "0, x"}, "expert"),
        ("remove", {"expert": "0, 1, 2"}, "expert"),
        ("merge", {"first": "1", "second": "1"}, "second"),
        ("distil", {"num_experts": "9"}, "num_experts"),
        ("specialise_clone", {"domain": "Kein Kode"}, "domain"),
    ],
)
def test_what_the_operation_would_refuse_stands_beside_its_field_at_once(
    people, mixture, tmp_path, kind, typed, field
) -> None:
    sent = {
        "model_version": mixture.pk,
        "corpus": tune_request(people, tmp_path)["corpus"],
        "name": "Kept",
        **typed,
    }
    reply = people.client("owner").post(f"/jobs/operate/?operation={kind}", sent)
    assert reply.status_code == 422
    form = reply.context["form"]
    assert list(form.errors) == [field]
    assert form["name"].value() == "Kept" and form[field].value() == typed[field]
    assert not Job.objects.exists()
