"""A job's page in a browser while its events come in: what it says at the end is what a fresh load says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.utils import timezone
from playwright.sync_api import Page, WebSocketRoute, expect

from jobs.models import Job
from jobs.services import job_submit
from tests.apps.jobs.fixtures import tune_request
from tests.in_browser import shown
from tests.people import People

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]
PROGRESS, PROGRESS_NOTE = '[data-kpi="progress"]', '[data-kpi-note="progress"]'
HEAT = {"layers": [1, 3], "num_experts": 4, "counts": [[4, 4, 4, 4], [4, 4, 4, 4]]}


class Wire:
    """The socket of the page, in the test's hand."""

    def __init__(self, page: Page, job: Job) -> None:
        self.page, self.job, self.seq = page, job, 0
        self.sockets: list[WebSocketRoute] = []
        page.route_web_socket(
            lambda url: url.endswith(f"/ws/jobs/{job.pk}/"), lambda socket: self.sockets.append(socket)
        )

    def open(self) -> None:
        self.page.goto(f"/jobs/{self.job.pk}/")
        while not self.sockets:
            self.page.wait_for_timeout(20)
        job = {"state": self.job.state, "stage": self.job.stage, "progress": self.job.progress}
        self.send({"type": "snapshot", "seq": 0, "job": job, "events": []})

    def send(self, told: dict[str, Any]) -> None:
        self.sockets[-1].send(json.dumps(told))

    def tell(self, kind: str, **payload: Any) -> None:
        self.seq += 1
        event = {"type": "event", "seq": self.seq, "kind": kind, "payload": payload}
        self.send({**event, "at": "2026-11-26T01:00:00+00:00"})


def move(job: Job, **changes: Any) -> Job:
    Job.objects.filter(pk=job.pk).update(**changes)
    job.refresh_from_db()
    return job


@pytest.fixture
def tune(people: People, tmp_path: Any) -> Job:
    return job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))


def test_an_import_that_succeeds_before_ones_eyes_stands_at_its_whole(people: People, job: Job) -> None:
    move(job, state="running", stage="register", progress=0.8)
    with shown(people.client("owner")) as page:
        wire = Wire(page, job)
        wire.open()
        expect(page.locator(PROGRESS)).to_have_text("80\u202f%")
        move(job, state="succeeded", progress=1.0, ended_at=timezone.now())
        wire.tell("state", state="succeeded", reason="")
        expect(page.locator(PROGRESS)).to_have_text("100\u202f%")
        expect(page.locator(PROGRESS_NOTE)).to_have_text("Register")


def test_preparation_has_a_counter_with_a_name_of_its_own(people: People, tune: Job) -> None:
    move(tune, state="running", stage="specialise", progress=0.14)
    with shown(people.client("owner")) as page:
        wire = Wire(page, tune)
        wire.open()
        wire.tell("step", stage="specialise", step=4, of=10)
        expect(page.locator(PROGRESS_NOTE)).to_have_text("Specialise experts: windows prepared 4 / 10")
        wire.tell("step", stage="specialise", step=1, of=6, loss=3.0)
        expect(page.locator(PROGRESS_NOTE)).to_have_text("Specialise experts 1 / 6")


def test_headings_speak_of_now_only_while_the_job_goes_on(people: People, tune: Job) -> None:
    move(tune, state="running", stage="route", progress=0.5)
    with shown(people.client("owner")) as page:
        wire = Wire(page, tune)
        wire.open()
        expect(page.locator("#heat-title > span").first).to_have_text("Expert load, now")
        move(tune, state="succeeded", stage="register", progress=1.0, ended_at=timezone.now())
        wire.tell("state", state="succeeded", reason="")
        expect(page.locator("#heat-title > span").first).to_have_text("Expert load, at the end")
        expect(page.locator("#domain-loss-title > span").first).to_have_text("Loss by domain, at the end")


def test_a_measurements_running_mean_is_not_drawn_as_a_course(people: People, tune: Job) -> None:
    move(tune, state="running", stage="route", progress=0.5)
    with shown(people.client("owner")) as page:
        wire = Wire(page, tune)
        wire.open()
        sparks = page.locator('[data-domain-spark="support"] path, [data-kpi-spark="loss"] path')
        for number in (1, 2):
            wire.tell("step", stage="route", step=number, of=2, loss=3.0, loss_by_domain={"support": 3.0})
        expect(sparks).to_have_count(2)
        for number in (1, 2):
            wire.tell(
                "step", stage="evaluate_after", step=number, of=2, loss=2.5, loss_by_domain={"support": 2.5}
            )
        expect(page.locator('[data-domain-loss="support"]')).to_have_text("2.500")
        expect(sparks).to_have_count(0)


def test_the_share_to_the_deranged_maps_experts_is_none_to_the_domains_own(people: People, tune: Job) -> None:
    move(tune, state="running", stage="control", progress=0.9)
    with shown(people.client("owner")) as page:
        wire = Wire(page, tune)
        wire.open()
        wire.tell("step", stage="control", step=2, of=2, loss=2.5, mapped_share=0.85, heat=HEAT)
        row = page.locator('[data-stage-row="control"]')
        expect(row.locator('[data-figure="loss"]')).to_have_text("2.500")
        expect(row.locator('[data-figure="mapped_share"]')).to_have_text("—")
        expect(row).to_contain_text("its map deranged")
        expect(page.get_by_text("the last on the curves, are left out")).to_be_visible()


def test_a_line_that_comes_in_is_said_as_the_page_says_it(people: People, tune: Job) -> None:
    move(tune, state="running", stage="specialise")
    with shown(people.client("owner"), language="zh-hans") as page:
        wire = Wire(page, tune)
        wire.open()
        for code, values in (
            ("operation_begins", {"operation": "grow", "count": "1"}),
            ("prompts_taken", {"file": "a.csv", "counts": "law 3, code 4"}),
        ):
            wire.tell("log", level="info", text="in English", code=code, values=values)
        expect(page.locator("#log")).to_contain_text("操作“扩展”开始")
        expect(page.locator("#log")).to_contain_text("law 3、code 4")
