"""Figures of two stages never make one series, and the axis of the curves is the whole run."""

from __future__ import annotations

import pytest

from jobs import execution
from jobs.by_stage import latest_own, learning_plan, num_turns, stage_figures
from jobs.models import Job
from jobs.services import job_submit
from tests.apps.jobs.fixtures import tune_request

pytestmark = pytest.mark.django_db


@pytest.fixture
def tune(people, tmp_path) -> Job:
    return job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))


def step(claim, stage: str, number: int, **more) -> None:
    payload = {"stage": stage, "step": number, "of": 6, "loss": 3.0 - number / 10, **more}
    execution.job_event(claim, "step", payload, stage=stage)


def test_the_axis_counts_the_steps_of_every_stage_that_learns(tune) -> None:
    # Two mapped experts and one turn for the general ones, two steps each; the router two, the control two.
    assert num_turns(tune.inputs["tune"]) == 3
    assert [(one["key"], one["steps"]) for one in learning_plan(tune)] == [
        ("specialise", 6), ("route", 2), ("control", 2),
    ]  # fmt: skip


def test_without_a_control_or_without_steps_there_is_no_such_stage(people, tmp_path) -> None:
    request = tune_request(people, tmp_path, control=False, specialise_steps=0)
    job = job_submit(caller=people.owner, kind="tune", spec=request)
    assert [one["key"] for one in learning_plan(job)] == ["route"]
    assert "evaluate_control" not in [row.key for row in stage_figures(job)]


def test_an_import_has_no_curves(job) -> None:
    assert learning_plan(job) == []


def test_each_stage_keeps_its_own_last_figures(tune) -> None:
    claim = execution.job_claim(tune.pk, holder="a")
    for number in (1, 2):
        step(claim, "specialise", number, tokens_per_second=900.0)
    step(claim, "route", 1, max_vio=0.7, tokens_per_second=400.0)
    rows = {row.key: row for row in stage_figures(tune)}
    assert (rows["specialise"].step, rows["specialise"].figures["loss"]) == (2, 2.8)
    assert "max_vio" not in rows["specialise"].figures
    assert rows["route"].figures["max_vio"] == 0.7
    assert rows["evaluate_after"].figures == {}


def test_the_controls_figures_never_pass_for_those_of_the_model(tune) -> None:
    claim = execution.job_claim(tune.pk, holder="a")
    assert latest_own(stage_figures(tune)) is None
    step(claim, "evaluate_after", 1, max_vio=0.5)
    step(claim, "control", 2, max_vio=2.5)
    own = latest_own(stage_figures(tune))
    assert own is not None
    assert (own.key, own.figures["max_vio"]) == ("evaluate_after", 0.5)


def test_the_page_says_which_stage_its_figures_are_of(people, tune) -> None:
    claim = execution.job_claim(tune.pk, holder="a")
    step(claim, "specialise", 2, tokens_per_second=900.0)
    page = people.client("teammate").get(f"/jobs/{tune.pk}/").content.decode()
    assert '<div class="note" data-kpi-note="loss">Specialise experts</div>' in page
    # The router has decided nothing yet, so there is no MaxVio to show.
    assert '<span data-kpi="max_vio">—</span>' in page
    assert "&quot;steps&quot;:6" in page


def test_an_operation_and_an_import_say_no_time_that_is_left(people, tune, job) -> None:
    from jobs.pages import time_left_s

    execution.job_claim(tune.pk, holder="a")
    Job.objects.filter(pk=tune.pk).update(progress=0.5)
    running = Job.objects.get(pk=tune.pk)
    assert time_left_s(running) is not None
    for kind in ("operate", "import"):
        running.kind = kind
        assert time_left_s(running) is None
