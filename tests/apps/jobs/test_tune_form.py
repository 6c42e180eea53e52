"""The tuning form asks whatever TuneSpec can be told; what is refused stands beside its field, with all that was typed."""

from __future__ import annotations

import pytest

from jobs.models import Job
from jobs.tune_fields import OF_ROWS, PARTS, PLAIN
from jobs.tune_form import TuneForm
from layouts.services import layout_create
from moe_core.spec import TuneSpec
from tests.apps.jobs.fixtures import tune_request

pytestmark = pytest.mark.django_db
TAUGHT = {
    "gate_noise": "0.5", "balance_bias_rate": "0.01", "gate_loss_weight": "0.2",
    "balance_form": "sequence", "importance_weight": "0.3", "route_clip_norm": "2", "lm_weight": "0.5",
    "explore": "on", "weight_decay": "0.1", "clip_norm": "3", "upcycle_noise": "0.05", "router_std": "0.01", "device": "cpu",
    "checkpoint_min_seconds": "5", "schedule-kind": "linear", "schedule-start": "3", "schedule-end": "0.5",
    "schedule-num_steps": "12", "capacity-overflow": "next_best", "capacity-train_factor": "1.5",
    "capacity-priority": "weight", "capacity-min_tokens": "2",
}  # fmt: skip

# What a run would not save, and is refused: the room of experts when serving.
SERVED = {"eval_factor"}


@pytest.fixture
def asked(people, tmp_path):
    """A complete form over a layout whose gate has the bias that balancing moves."""
    request = tune_request(people, tmp_path)
    layout = layout_create(
        caller=people.owner, name="Noisy", base_version_id=request["model_version"],
        spec={"moe_layers": [1, 3], "num_experts": 4, "top_k": 2, "gate": {"kind": "noisy_topk", "selection_bias": True}},
    )  # fmt: skip
    return {
        **{name: request[name] for name in TuneForm.PARTS},
        "plain": request["layout"],
        "layout": layout.pk,
    }


def test_the_form_asks_for_every_field_of_a_tuning_run() -> None:
    asked_for = {name for part in PLAIN for name in part.asks} | set(PARTS)
    assert asked_for == set(TuneSpec.model_fields) - set(OF_ROWS)
    for part in PARTS.values():
        assert set(part.asks) == set(part.schema.model_fields) - SERVED


def test_everything_that_is_typed_is_what_the_job_is_told(people, asked) -> None:
    reply = people.client("owner").post("/jobs/tune/", {**asked, **TAUGHT})
    assert reply.status_code == 302, reply.context["form"].errors
    told = TuneSpec.parse(Job.objects.get().inputs["tune"])
    assert told.temperature_schedule is not None and told.capacity is not None
    assert told.temperature_schedule.model_dump() == {
        "kind": "linear", "start": 3.0, "end": 0.5, "num_steps": 12, "step": 0,
    }  # fmt: skip
    assert told.capacity.model_dump() == {
        "train_factor": 1.5, "eval_factor": None, "overflow": "next_best", "priority": "weight", "min_tokens": 2,
    }  # fmt: skip
    plain = {
        name: value
        for name, value in TAUGHT.items()
        if "-" not in name and name not in ("explore", "device", "balance_form")
    }
    assert {name: getattr(told, name) for name in plain} == {
        name: float(value) for name, value in plain.items()
    }
    assert (told.explore, told.device, told.balance_form) == (True, "cpu", "sequence")


def test_what_was_not_on_the_page_is_left_to_the_specification(people, asked) -> None:
    people.client("owner").post("/jobs/tune/", asked)
    told, usual = Job.objects.get().inputs["tune"], TuneSpec.model_fields
    for name in set(usual) - {*OF_ROWS, "num_threads"}:
        assert told[name] == usual[name].default, name


def test_the_page_of_the_job_tells_what_was_set_otherwise_than_usual(people, asked) -> None:
    people.client("owner").post("/jobs/tune/", {**asked, **TAUGHT})
    for language, words in (
        (
            "en",
            ("Rate of the balance bias", "moves evenly; From: 3; To: 0.5", "its next best expert with room"),
        ),
        ("zh-hans", ("均衡偏置的速率", "匀速变化；起点：3；终点：0.5", "有余量的次优专家")),
    ):
        page = people.client("owner").get(
            f"/jobs/{Job.objects.get().pk}/", headers={"accept-language": language}
        ).content.decode()  # fmt: skip
        for each in words:
            assert each in page


@pytest.mark.parametrize(
    ("typed", "fields"),
    [
        ({"gate_noise": "11"}, ["gate_noise"]),
        ({"route_clip_norm": "0"}, ["route_clip_norm"]),
        ({"explore": "off", "gate_noise": "1"}, ["explore"]),
        ({"capacity-overflow": "learned"}, ["capacity-overflow"]),
        ({"schedule-kind": "constant", "schedule-start": "2", "schedule-end": "1"}, ["schedule-end"]),
        ({"plain_layout": True, "balance_bias_rate": "0.1", "capacity-overflow": "learned"},
         ["balance_bias_rate", "capacity-overflow"]),
    ],
)  # fmt: skip
def test_a_complaint_stands_beside_its_field_and_nothing_is_lost(people, asked, typed, fields) -> None:
    if typed.pop("plain_layout", False):
        asked["layout"] = asked["plain"]
    reply = people.client("owner").post("/jobs/tune/", {**asked, "name": "Kept", **typed})
    assert reply.status_code == 422
    form = reply.context["form"]
    assert sorted(form.errors) == sorted(fields)
    page = reply.content.decode()
    for field in fields:
        assert f'id="id_{field}_error"' in page
    assert form["name"].value() == "Kept"
    for name, value in typed.items():
        assert form[name].value() == (value if name != "explore" else False)
    assert '<details class="more" open>' in page
    assert not Job.objects.exists()


def test_the_plain_path_stays_plain(people, asked) -> None:
    page = people.client("owner").get("/jobs/tune/").content.decode()
    assert '<details class="more">' in page and '<details class="more" open>' not in page


def test_programs_are_told_of_every_fault_of_a_tuning_run(people, asked) -> None:
    def refused(tune: dict) -> set[str]:
        spec = {**{name: asked[name] for name in TuneForm.PARTS}, "layout": asked["plain"], "tune": tune}
        reply = people.client("owner").post(
            "/api/v1/jobs/", {"kind": "tune", "spec": spec}, content_type="application/json"
        )
        assert reply.status_code == 422
        return {one["field"] for one in reply.json()["errors"]}

    assert refused({"gate_noise": 99, "seed": -1, "capacity": {"overflow": "x"}}) == {
        "tune.gate_noise", "tune.seed", "tune.capacity.overflow",
    }  # fmt: skip
    assert refused({"capacity": {"eval_factor": 2.0}}) == {"tune.capacity.eval_factor"}
    assert refused({"balance_bias_rate": 0.1, "capacity": {"overflow": "learned"}}) == {
        "tune.balance_bias_rate", "tune.capacity.overflow",
    }  # fmt: skip
