"""What the pages of operations on experts call their fields, and what they begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import Invalid
from jobs.services import job_submit
from moe_core.spec import ModelSpec
from registry.models import ModelVersion
from tests.apps.jobs.fixtures import make_corpus
from tests.apps.registry.fixtures import DENSE, make_version, moe_spec

pytestmark = pytest.mark.django_db
GROUPS = {"kind": "sigmoid_groups", "num_groups": 2, "topk_group": 1, "group_score": "best"}
SINGLE = [
    {"kind": "add"},
    {"kind": "remove", "expert": 1},
    {"kind": "merge", "first": 0, "second": 1, "weights": "even"},
]


@pytest.fixture
def mixture(people: Any, tmp_path: Path) -> ModelVersion:
    return make_version(people, tmp_path, spec=moe_spec(), name="Mixture")


def test_a_merge_speaks_of_merging_and_a_removal_of_going(people: Any, mixture: ModelVersion) -> None:
    client = people.client("owner")
    client.cookies["django_language"] = "zh-hans"
    labels = {"merge": "一起合并的专家数", "remove": "一起移出的专家数"}
    for kind, label in labels.items():
        page = client.get(f"/jobs/operate/?operation={kind}").content.decode()
        assert [one for one in labels.values() if one in page] == [label]


def refusal(people: Any, spec: ModelSpec, tmp_path: Path, operation: dict[str, Any], language: str) -> Any:
    version = make_version(people, tmp_path, spec=spec, name="Refused")
    body = {"kind": "operate", "spec": {"model_version": version.pk, "operation": operation}}
    reply = people.client("owner").post(
        "/api/v1/jobs/", body, content_type="application/json", headers={"accept-language": language}
    )
    assert reply.status_code == 422, reply.content
    (told,) = reply.json()["errors"]
    return told["field"], told["message"]


@pytest.mark.parametrize("operation", SINGLE, ids=lambda one: one["kind"])
@pytest.mark.parametrize(
    ("language", "way_out"),
    [
        ("en", "choose “The same in every group” (per_group)."),
        ("zh-hans", "请选择“每组同样处理”（per_group）。"),
    ],
)
def test_groups_are_refused_at_the_field_that_lifts_it(
    people: Any, tmp_path: Path, operation: dict[str, Any], language: str, way_out: str
) -> None:
    field, message = refusal(people, moe_spec(gate=GROUPS), tmp_path, operation, language)
    assert field == "operation.per_group" and message.endswith(way_out)
    lifted = {**operation, "per_group": True}
    spec = {"model_version": ModelVersion.objects.get().pk, "operation": lifted}
    assert job_submit(caller=people.owner, kind="operate", spec=spec).kind == "operate"


@pytest.mark.parametrize(
    ("spec", "operation", "way_out", "chinese"),
    [
        (
            moe_spec(gate={"kind": "hierarchical"}),
            SINGLE[1],
            "use a version whose gate has a row for each expert, such as “softmax_topk”.",
            "请使用门控为每个专家各有一行的版本，例如“softmax_topk”。",
        ),
        (DENSE, SINGLE[1], "Lay experts over it first.", "请先铺设专家。"),
    ],
    ids=["hierarchical", "dense"],
)
def test_a_refusal_names_the_way_out(
    people: Any, tmp_path: Path, spec: ModelSpec, operation: dict[str, Any], way_out: str, chinese: str
) -> None:
    assert refusal(people, spec, tmp_path, operation, "en")[1].endswith(way_out)
    assert refusal(people, spec, tmp_path, operation, "zh-hans")[1].endswith(chinese)


def test_what_learns_on_groups_is_told_to_take_another_version(people: Any, tmp_path: Path) -> None:
    version = make_version(people, tmp_path, spec=moe_spec(gate=GROUPS))
    spec = {
        "model_version": version.pk, "corpus": make_corpus(people).pk, "operation": {"kind": "distil", "num_experts": 4},
    }  # fmt: skip
    with pytest.raises(Invalid, match="use a version whose gate has one group"):
        job_submit(caller=people.owner, kind="operate", spec=spec)


def test_groups_are_refused_beside_the_box_of_the_form(people: Any, tmp_path: Path) -> None:
    version = make_version(people, tmp_path, spec=moe_spec(gate=GROUPS))
    sent = {"model_version": version.pk, "first": 0, "second": 1, "weights": "even"}
    reply = people.client("owner").post("/jobs/operate/?operation=merge", sent)
    assert reply.status_code == 422 and list(reply.context["form"].errors) == ["per_group"]


@pytest.mark.parametrize("kind", ["add", "remove", "merge", "specialise_clone", "wake_expert", "distil"])
def test_a_page_begins_with_a_version_that_it_can_change(
    people: Any, mixture: ModelVersion, tmp_path: Path, kind: str
) -> None:
    newer = [
        make_version(people, tmp_path, spec=moe_spec(gate=gate), name=str(gate["kind"]))
        for gate in ({"kind": "hierarchical"}, GROUPS)
    ]
    form = people.client("owner").get(f"/jobs/operate/?operation={kind}").context["form"]
    assert form.fields["model_version"].initial == mixture.pk
    assert {one.pk for one in newer} <= set(form.by_number), "they may still be chosen"
    chosen = people.client("owner").get(f"/jobs/operate/?operation={kind}&model_version={newer[1].pk}")
    assert chosen.context["form"].fields["model_version"].initial == newer[1].pk


def test_growth_begins_with_groups_and_not_with_slots(
    people: Any, mixture: ModelVersion, tmp_path: Path
) -> None:
    groups = make_version(people, tmp_path, spec=moe_spec(gate=GROUPS), name="Groups")
    slots = make_version(people, tmp_path, spec=moe_spec(gate={"kind": "soft"}), name="Slots")
    form = people.client("owner").get("/jobs/operate/?operation=grow").context["form"]
    assert {mixture.pk, groups.pk, slots.pk} <= set(form.by_number)
    assert form.fields["model_version"].initial == groups.pk


def test_where_no_version_fits_the_newest_stands(people: Any, tmp_path: Path) -> None:
    groups = make_version(people, tmp_path, spec=moe_spec(gate=GROUPS), name="Groups")
    form = people.client("owner").get("/jobs/operate/?operation=merge").context["form"]
    assert form.fields["model_version"].initial == groups.pk


def test_composing_says_where_the_ridge_counts_for_nothing(people: Any, mixture: ModelVersion) -> None:
    client = people.client("owner")
    for language, words in (
        ("en", "Mean hidden states need none"),
        ("zh-hans", "以平均隐藏状态拟合时不用它"),
    ):
        client.cookies["django_language"] = language
        assert words in client.get("/jobs/operate/?operation=compose").content.decode()
