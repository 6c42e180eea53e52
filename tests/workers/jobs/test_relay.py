"""Few rows, quick frames: a long run stays a short story."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from jobs import execution
from jobs.models import Job, JobEvent
from workers import relay
from workers.relay import Relay, bucket_of
from workers.runtime import Message

pytestmark = pytest.mark.django_db


@pytest.fixture
def heard(submit, monkeypatch):
    """A relay with a real claim, on a clock that moves a quarter of a second at each look."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(relay.time, "monotonic", lambda: next(ticks) * 0.25)
    frames = []
    monkeypatch.setattr(relay, "frame_publish", lambda job_id, kind, payload: frames.append(payload))
    claim = execution.job_claim(submit("x").pk, holder="a")
    monkeypatch.setattr("workers.relay.job_event", execution.job_event)
    return SimpleNamespace(
        relay=Relay(claim, SimpleNamespace(lost=threading.Event())), frames=frames, job=claim.job
    )


@pytest.mark.parametrize("of", [1, 10, 400, 401, 1000, 1_000_000])
def test_a_stage_has_at_most_about_400_stretches(of) -> None:
    stretches = {bucket_of({"step": step, "of": of}) for step in range(1, of + 1)}
    assert min(of, 200) <= len(stretches) <= 401


def test_a_child_that_tells_few_of_its_steps_loses_none_of_them(heard) -> None:
    """It tells one step in seven; with a stride of its own the relay would keep one in 35."""
    told = list(range(7, 2001, 7))
    for step in told:
        heard.relay.hear(Message("step", {"stage": "convert", "step": step, "of": 2000, "loss": 1.0}))
    kept = JobEvent.objects.filter(job=heard.job, kind="step").values_list("payload__step", flat=True)
    assert list(kept) == told


def test_a_run_of_many_steps_becomes_few_rows_and_many_frames(heard) -> None:
    for step in range(1, 1201):
        heard.relay.hear(Message("step", {"stage": "convert", "step": step, "of": 1200, "loss": 1.0}))
    kept = JobEvent.objects.filter(job=heard.job, kind="step")
    assert 300 <= kept.count() <= 402
    assert kept.last().payload["step"] == 1200
    assert len(heard.frames) == 1200 - kept.count()


def test_the_log_is_bounded_but_its_end_is_remembered(heard) -> None:
    for n in range(relay.KEPT_LOG_LINES + 500):
        heard.relay.hear(Message("stderr", {"text": f"line {n}"}))
    assert JobEvent.objects.filter(job=heard.job, kind="log").count() == relay.KEPT_LOG_LINES
    assert heard.relay.log_tail().splitlines()[-1] == f"line {relay.KEPT_LOG_LINES + 499}"
    assert len(heard.relay.log_tail().splitlines()) == relay.TAIL_LINES


def test_progress_grows_and_never_falls(heard) -> None:
    seen = []
    for stage, step in (("read", 0), ("convert", 2), ("convert", 4), ("convert", 1), ("inspect", 0)):
        payload = {"stage": stage, "step": step, "of": 4, "loss": 1.0} if step else {"stage": stage}
        heard.relay._keep("step" if step else "stage", payload)
        seen.append(Job.objects.get(pk=heard.job.pk).progress)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(0.8)


def test_a_word_that_means_nothing_is_left_out(heard) -> None:
    before = JobEvent.objects.count()
    heard.relay.hear(Message("drop table", {"stage": "x"}))
    assert JobEvent.objects.count() == before


def test_parts_of_an_operation_move_the_bar_and_are_kept_now_and_then(heard) -> None:
    for done in range(1, 101):
        part = {"stage": "convert", "part": "load", "step": done, "of": 100, "inside": done / 200}
        heard.relay.hear(Message("step", part))
    kept = JobEvent.objects.filter(job=heard.job, kind="step")
    assert 10 <= kept.count() <= 15
    assert kept.last().payload["step"] == 100
    assert len(heard.frames) == 100 - kept.count()
    # A tenth of an import is reading, seven tenths are converting, half of which is done.
    assert Job.objects.get(pk=heard.job.pk).progress == pytest.approx(0.1 + 0.7 / 2)
