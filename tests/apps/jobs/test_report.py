"""Is it getting better, and is that real: the figures of a run, and the sentence that is made of them."""

from __future__ import annotations

import pytest
from django.utils import translation

from jobs import execution
from jobs.models import Job, JobEvent
from jobs.report import report_of
from jobs.services import job_submit
from jobs.verdict import verdict_of
from tests.apps.jobs.fixtures import tune_request

pytestmark = pytest.mark.django_db


def figures(loss: float, share: float, vio: float, **by_domain: float) -> dict:
    return {
        "loss": loss, "mapped_share": share, "max_vio": vio, "entropy": 0.9, "dead_experts": 0,
        "loss_by_domain": by_domain, "mapped_share_by_domain": {code: share for code in by_domain if code},
    }  # fmt: skip


BEFORE = figures(3.0, 0.26, 2.9, support=3.0, copy=3.0)
AFTER = figures(2.4, 0.81, 1.2, support=2.4, copy=2.4)
CONTROL = figures(2.5, 0.2, 1.3, support=2.5, copy=2.5)


@pytest.fixture
def tune(people, tmp_path) -> Job:
    return job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))


def ended(job: Job, **tuning: dict) -> Job:
    Job.objects.filter(pk=job.pk).update(
        state="succeeded", ended_at=job.created_at, result={"tuning": tuning}
    )
    return Job.objects.get(pk=job.pk)


def said(job: Job) -> tuple[str, str]:
    verdict = verdict_of(job, report_of(job), {})
    return verdict.state, f"{verdict.strong} {verdict.rest}"


def test_a_gain_that_the_control_lacks_is_real(tune) -> None:
    lamp, words = said(ended(tune, before=BEFORE, after=AFTER, control=CONTROL))
    assert lamp == "ok"
    assert "All 2 domains improve." in words
    assert "fell by 20.0" in words
    assert "the map did this" in words


def test_a_gain_that_the_control_has_as_well_is_not_called_real(tune) -> None:
    lamp, words = said(ended(tune, before=BEFORE, after=AFTER, control={**CONTROL, "mapped_share": 0.75}))
    assert lamp == "caution"
    assert "75" in words
    assert "it was not the map" in words


def test_without_a_control_nothing_is_claimed_of_the_map(tune) -> None:
    assert "not known whether the map" in said(ended(tune, before=BEFORE, after=AFTER))[1]


def test_a_domain_that_gets_worse_is_counted(tune) -> None:
    worse = figures(2.9, 0.81, 1.2, support=2.4, copy=3.4)
    lamp, words = said(ended(tune, before=BEFORE, after=worse, control=CONTROL))
    assert "1 of 2 domains improve, 1 get worse." in words
    assert lamp == "caution"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({**AFTER, "max_vio": 3.4}, "MaxVio rose from 2.90 to 3.40"),
        ({**AFTER, "entropy": 0.8}, "MaxVio fell"),
        ({**AFTER, "mapped_share": 0.21}, "21"),
        ({**AFTER, "loss": 2.98}, "did not change by more than chance"),
        ({**AFTER, "dead_experts": 2}, "MaxVio fell"),
    ],
)
def test_a_figure_that_got_worse_or_a_loss_that_did_not_fall_is_amber(tune, after, words) -> None:
    lamp, said_words = said(ended(tune, before=BEFORE, after=after, control={**CONTROL, "mapped_share": 0.0}))
    assert lamp == "caution"
    assert words in said_words


def test_a_loss_that_rose_is_not_well(tune) -> None:
    lamp, words = said(ended(tune, before=BEFORE, after={**AFTER, "loss": 3.3}, control=CONTROL))
    assert lamp == "caution"
    assert "rose by 10.0" in words


def test_a_change_within_one_in_a_hundred_is_no_change(tune) -> None:
    close = figures(2.98, 0.81, 1.2, support=2.98, copy=3.02)
    rows = report_of(ended(tune, before=BEFORE, after=close)).domains
    assert [row.verdict for row in rows] == ["same", "same"]


def test_while_it_runs_the_figures_come_from_the_events(tune) -> None:
    claim = execution.job_claim(tune.pk, holder="a")
    execution.job_event(claim, "report", {"name": "before", "figures": BEFORE}, stage="specialise")
    report = report_of(Job.objects.get(pk=tune.pk))
    assert report.figure("before", "loss") == 3.0
    assert [row.verdict for row in report.domains] == ["", ""]
    assert "3.000" in said(Job.objects.get(pk=tune.pk))[1]
    execution.job_event(claim, "report", {"name": "after", "figures": AFTER}, stage="control")
    assert "still has to show" in said(Job.objects.get(pk=tune.pk))[1]


def test_rows_of_no_domain_are_shown_when_there_are_any(tune) -> None:
    before = {**BEFORE, "loss_by_domain": {**BEFORE["loss_by_domain"], "": 2.0}}
    assert [row.code for row in report_of(ended(tune, before=before)).domains] == ["support", "copy", ""]


def test_the_frozen_names_are_shown_in_the_readers_language(tune) -> None:
    with translation.override("zh-hans"):
        assert [row.name for row in report_of(tune).domains] == ["客服回复", "商品文案"]


def test_waiting_for_another_attempt_says_why(job) -> None:
    execution.job_crashed(execution.job_claim(job.pk, holder="a"), reason="SIGKILL")
    lamp, words = said(Job.objects.get(pk=job.pk))
    assert (lamp, words) == ("caution", "Waiting for attempt 2 of 3. SIGKILL.")
    assert JobEvent.objects.filter(job=job, kind="state").count() == 3


@pytest.mark.parametrize(("state", "lamp"), [("paused", "caution"), ("cancelled", "off"), ("failed", "danger"),
                                             ("quarantined", "danger"), ("queued", "off"), ("running", "busy"),
                                             ("pausing", "busy"), ("cancelling", "busy")])  # fmt: skip
def test_every_state_has_its_sentence(job, state, lamp) -> None:
    job.state, job.error, job.attempts = state, "because", 0
    assert said(job)[0] == lamp
    assert said(job)[1].strip()
