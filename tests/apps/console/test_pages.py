"""The console's own pages: what they say first, and to whom."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone
from django.utils.translation import override

from accounts.audit import audit_record
from console import navigation
from console.lately import COMINGS, SENTENCES, lately, sentence
from console.overview import SHOWN_JOBS, kpis, picture_of, verdict
from console.playground import starters
from console.traffic import traffic_of
from deployments.models import Deployment
from gateway.models import Usage
from jobs.models import Job
from moe_core.errors import TrainingError
from registry.models import Model, ModelVersion
from routing.models import Domain
from tests.people import People

pytestmark = pytest.mark.django_db


def test_a_new_installation_shows_the_whole_way_with_its_first_station_lit(people: People) -> None:
    picture = picture_of(people.owner.team)
    assert picture.is_blank
    assert [step["state"] for step in picture.stations] == ["now", "next", "next", "next", "next"]
    page = people.client("owner").get("/").content.decode()
    assert page.count('aria-current="step"') == 1
    assert "Nothing runs yet." in page


def test_the_overview_says_the_worst_fact_first_and_whether_users_feel_it(people: People) -> None:
    Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    Job.objects.create(
        team=people.owner.team,
        kind="import",
        name="import tiny",
        state="failed",
        error="disk full",
        ended_at=timezone.now(),
    )
    told = verdict(picture_of(people.owner.team))
    assert told["state"] == "danger"
    assert "import tiny" in told["text"] and "disk full" in told["text"]
    assert "No deployment answers at present." in told["rest"]


def failed_job(people: People, **more: object) -> Job:
    fields = {"kind": "tune", "name": "hand tune", "state": "failed", "ended_at": timezone.now(), **more}
    return Job.objects.create(team=people.owner.team, **fields)


def test_a_failure_ends_with_its_stop_and_is_chinese_on_a_chinese_page(people: People) -> None:
    Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    failed_job(people, error=str(TrainingError.of("no_window", name="expert 1 (copy)")))
    told = verdict(picture_of(people.owner.team))
    assert told["text"].endswith("or unmap it.")
    with override("zh-hans"):
        chinese = verdict(picture_of(people.owner.team))
    assert chinese["text"].endswith("请上传该领域的日志，或取消其映射。")
    assert "window" not in chinese["text"]


def test_what_moe_core_says_seldom_stands_under_a_chinese_sentence(people: People) -> None:
    Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    failed_job(people, error="the moon is full")
    with override("zh-hans"):
        assert verdict(picture_of(people.owner.team))["text"].endswith("技术细节（英文）：the moon is full.")


def test_a_failure_that_a_later_run_of_its_kind_made_good_worries_nobody(people: People) -> None:
    Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    failed_job(people, error="x", ended_at=timezone.now() - timedelta(hours=2))
    assert len(picture_of(people.owner.team).worries) == 1
    failed_job(people, kind="import", state="succeeded", ended_at=timezone.now() - timedelta(hours=1))
    assert len(picture_of(people.owner.team).worries) == 1
    failed_job(people, state="succeeded", ended_at=timezone.now() - timedelta(hours=1))
    assert not picture_of(people.owner.team).worries
    failed_job(people, error="again")
    assert len(picture_of(people.owner.team).worries) == 1


def test_a_deployment_that_loads_is_on_its_way_and_not_absent(people: People) -> None:
    model = Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    version = ModelVersion.objects.create(model=model, number=1, spec={}, files={}, size_bytes=1)
    Deployment.objects.create(
        team=people.owner.team, name="support", desired_version=version, desired_replicas=1
    )
    said = verdict(picture_of(people.owner.team))
    assert said["state"] == "busy"
    assert said["text"] == "support is on its way."


def test_nothing_can_be_sent_while_nothing_serves(people: People) -> None:
    page = people.client("owner").get("/playground/").content.decode()
    assert 'id="send" disabled' in page
    assert "Nothing serves yet" in page


def test_the_first_prompts_are_in_the_readers_language(people: People) -> None:
    people.client("owner").post("/domains/example/")
    assert starters(people.owner.team)[0]["prompt"] == "How long does a bathroom renovation take?"
    with override("zh-hans"):
        prompts = [one["prompt"] for one in starters(people.owner.team)]
    assert len(prompts) == 4 and prompts[0] == "我需要为扩建申请许可吗？"
    assert all("？" in prompt or "。" in prompt for prompt in prompts)


def test_a_domain_without_an_example_in_the_readers_language_offers_another(people: People) -> None:
    people.client("owner").post("/domains/example/")
    Domain.objects.update(examples=["only English"])
    with override("zh-hans"):
        assert starters(people.owner.team)[0]["prompt"] == "only English"


def test_the_first_import_is_foretold_as_short_as_it_is(people: People) -> None:
    page = people.client("owner").get("/").content.decode()
    assert page.count("less than a minute") == 2 and "about a minute" not in page


def test_a_job_of_last_week_worries_nobody(people: People) -> None:
    Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    old = timezone.now() - timedelta(days=7)
    Job.objects.create(
        team=people.owner.team, kind="import", name="old", state="failed", error="x", ended_at=old
    )
    assert not picture_of(people.owner.team).worries


def test_the_strip_counts_every_job_and_not_only_those_that_have_a_row(people: People) -> None:
    for hours in range(SHOWN_JOBS + 3):
        failed_job(people, state="succeeded", ended_at=timezone.now() - timedelta(hours=hours))
    failed_job(people, state="succeeded", ended_at=timezone.now() - timedelta(hours=25))
    for _ in range(SHOWN_JOBS + 2):
        failed_job(people, state="queued", ended_at=None)
    picture = picture_of(people.owner.team)
    assert len(picture.jobs) == SHOWN_JOBS
    strip = kpis(picture)[-1]
    assert (strip["value"], strip["note"]) == (SHOWN_JOBS + 2, f"{SHOWN_JOBS + 3} ended in the last day")
    with override("zh-hans"):
        assert kpis(picture)[-1]["note"] == f"近一日结束 {SHOWN_JOBS + 3} 个"


def test_the_overview_tells_nothing_of_another_team(people: People) -> None:
    Model.objects.create(team=people.owner.team, name="Secret name", slug="secret")
    Job.objects.create(team=people.owner.team, kind="import", name="secret job", state="queued")
    page = people.client("outsider").get("/").content.decode()
    assert "Secret name" not in page and "secret job" not in page


def test_traffic_is_counted_by_the_minute_and_its_p95_is_the_databases(people: People) -> None:
    now = timezone.now()
    for index in range(20):
        row = Usage.objects.create(
            team=people.owner.team, version_id=1, request_id=uuid4().hex, path="/v1/chat/completions",
            completion_tokens=10, finish_reason="stop" if index else "error", first_token_ms=100.0 + index,
        )  # fmt: skip
        Usage.objects.filter(pk=row.pk).update(at=now - timedelta(minutes=index // 2))
    found = traffic_of(people.owner.team)
    assert (found.requests, found.failed, found.output_tokens) == (20, 1, 200)
    assert found.first_token_p95_ms == pytest.approx(118.05)
    assert sum(found.request_series) == 20 and len(found.request_series) == 60
    assert sum(found.token_series) == 200


def requests_of_now(people: People, failed: int, answered: int, **more: object) -> None:
    for index in range(failed + answered):
        Usage.objects.create(
            team=people.owner.team, version_id=1, request_id=uuid4().hex, path="/v1/chat/completions",
            finish_reason="error" if index < failed else "stop", **more,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("failed", "answered", "told"),
    [(1, 19, "5.0 % of all requests"), (1, 20, ""), (2, 3, "40.0 % of all requests"), (4, 0, "")],
)
def test_failed_requests_are_a_worry_from_a_share_and_a_number_on(people, failed, answered, told) -> None:
    Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    requests_of_now(people, failed, answered)
    picture = picture_of(people.owner.team)
    said = [worry.text.replace("\u202f", " ") for worry in picture.worries]
    assert len(said) == bool(told) and all(told in one for one in said)
    if told:
        line = verdict(picture)
        assert line["state"] == "caution" and f"({failed} of {failed + answered})" in line["text"]
        assert "got no answer" in line["rest"]
        page = people.client("owner").get("/").content.decode()
        assert 'href="/gateway/"' in page[page.index('id="worries"') :]
        assert "Nothing needs attention" not in page


def test_failed_requests_are_told_by_the_deployment_that_failed_them_and_before_jobs(people) -> None:
    model = Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    version = ModelVersion.objects.create(model=model, number=1, spec={}, files={}, size_bytes=1)
    made = Deployment.objects.create(team=people.owner.team, name="support", desired_version=version)
    failed_job(people, error="x")
    requests_of_now(people, 3, 7, deployment=made)
    picture = picture_of(people.owner.team)
    assert "to support failed" in picture.worries[0].text and len(picture.worries) == 2
    with override("zh-hans"):
        assert "发往 support 的请求" in verdict(picture_of(people.owner.team))["text"]


def test_the_rail_shows_only_pages_that_exist_and_marks_the_nearest(people: People) -> None:
    page = people.client("owner").get("/playground/").content.decode()
    rail = page[page.index('class="rail"') : page.index("</aside>")]
    assert rail.count('aria-current="page"') == 1
    assert 'href="/playground/" aria-current="page"' in rail
    addresses = [
        navigation.address(item.url_name) for section in navigation.SECTIONS for item in section.items
    ]
    assert all(f'href="{address}"' in rail for address in addresses if address)
    assert 'href="None"' not in rail and 'href=""' not in rail


def test_a_viewer_sees_no_link_to_what_only_admins_may_open(people: People) -> None:
    assert "/audit/" in people.client("owner").get("/").content.decode()
    assert "/audit/" not in people.client("teammate").get("/").content.decode()


def test_what_was_done_is_told_as_a_sentence(people: People) -> None:
    event = audit_record(caller=people.owner, action="layout.created", target="support r1")
    assert sentence(event) == f"{event.actor} drew the layout support r1"
    unknown = audit_record(caller=people.owner, action="brand.new", target="thing")
    assert "brand.new" in sentence(unknown)


def audited_actions() -> set[str]:
    """Every action that the code writes into the audit log, as its sources name them."""
    found: set[str] = set()
    for path in Path(settings.ROOT, "platform").rglob("*.py"):
        text = path.read_text()
        if "audit_record(" in text or "audit_person(" in text:
            found.update(re.findall(r'action="([a-z_.]+)"', text))
            found.update(re.findall(r'"((?:member|account|team)\.[a-z_]+)"', text))
        if "_changed(" in text and path.match("deployments/services.py"):
            found.update(
                f"deployment.{kind}"
                for kind in re.findall(r'_changed\(deployment, caller, "([a-z_]+)"', text)
            )
    return found


def test_details_of_the_audit_log_are_written_as_people_write_them(people: People) -> None:
    audit_record(
        caller=people.owner, action="token.created", target="ci", scopes=["read", "infer"], limits={}, note="", replicas=0,
    )  # fmt: skip
    audit_record(caller=people.owner, action="token.created", target="ci", limits={"max_concurrent": 4}, staff=True)
    for language, told in (("en", "read, infer"), ("zh-hans", "read、infer")):
        reply = people.client("owner").get("/audit/", headers={"accept-language": language})
        page = reply.content.decode()
        newest, older = reply.context["page"][:2]
        assert f"scopes {told} · replicas 0" in page.replace("replicas 0 · scopes " + told, f"scopes {told} · replicas 0")
        assert "max_concurrent 4" in page and "[" not in page.split("audit-rows")[1].split("</tbody>")[0]
        assert "limits {" not in page and newest.pk > older.pk


def test_everything_that_is_audited_has_a_sentence_or_is_left_out() -> None:
    actions = audited_actions()
    assert {"deployment.created", "invitation.created", "signin", "job.submitted"} <= actions
    assert actions - set(SENTENCES) - COMINGS == set()


def test_who_signed_in_does_not_crowd_out_what_was_done(people: People) -> None:
    audit_record(caller=people.owner, action="layout.created", target="support r1")
    for _ in range(10):
        audit_record(caller=people.owner, action="signin", target=people.owner.name)
    assert lately(people.owner.team)[0].text.endswith("drew the layout support r1")


def test_pages_speak_the_language_of_the_reader(people: People) -> None:
    client = people.client("owner")
    client.cookies["django_language"] = "zh-hans"
    page = client.get("/").content.decode()
    assert '<html lang="zh-hans"' in page and "总览" in page and "Skip to content" not in page


def test_the_theme_of_the_cookie_is_there_before_any_script(people: People) -> None:
    client = people.client("owner")
    client.cookies["turnout_theme"] = "dark"
    assert 'data-theme="dark"' in client.get("/").content.decode()
    client.cookies["turnout_theme"] = '"><script>'
    assert 'data-theme="auto"' in client.get("/").content.decode()


def test_error_pages_have_a_way_back_and_the_request_id() -> None:
    answer = Client().get("/no-such-page/", headers={"accept": "text/html"})
    page = answer.content.decode()
    assert answer.status_code == 404
    assert answer["X-Request-Id"] in page and 'href="/"' in page


@pytest.mark.parametrize(
    ("who", "address", "status"),
    [("owner", "/jobs/999/", 404), ("owner", "/no-such-page/", 404), ("teammate", "/jobs/import/", 403)],
)
def test_an_error_page_keeps_the_navigation_of_who_is_signed_in(
    people: People, who: str, address: str, status: int
) -> None:
    answer = people.client(who).get(address, headers={"accept": "text/html"})
    page = answer.content.decode()
    assert answer.status_code == status
    assert 'class="rail"' in page and 'href="/playground/"' in page and page.count("<h1>") == 1


def test_an_error_page_of_a_stranger_is_bare() -> None:
    page = Client().get("/no-such-page/", headers={"accept": "text/html"}).content.decode()
    assert 'class="rail"' not in page and 'class="bare-page"' in page


def test_every_page_carries_the_strict_policy(people: People) -> None:
    policy = people.client("owner").get("/")["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


@pytest.mark.parametrize(
    "path", ["docs/tutorials/main-job.md", "docs/how-to/use-the-api.md", "templates/gateway/keys.html"]
)
def test_every_request_that_is_shown_sets_a_temperature(path: str) -> None:
    text = Path(settings.ROOT, path).read_text()
    asked = list(re.finditer(r"completions\.create\(|chat/completions -d ", text))
    assert asked
    assert all("temperature" in text[one.end() : one.end() + 300] for one in asked)
