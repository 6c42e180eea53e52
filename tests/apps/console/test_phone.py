"""Pages on a phone, in both languages: nothing is wider than the window, and no word stands one character per line."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from jobs.models import Job
from jobs.services import job_submit
from layouts.services import layout_create
from registry.models import Model
from tests.apps.jobs.fixtures import tune_request
from tests.apps.registry.fixtures import make_version
from tests.apps.registry.fixtures import store_dir as store_dir
from tests.in_browser import shown
from tests.people import People

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]
WIDTH = 390
TOO_WIDE = """() => [...document.querySelectorAll("main *")].filter((node) => {
  const box = node.getBoundingClientRect();
  if (!box.width || box.right <= innerWidth + 1) return false;
  for (let up = node.parentElement; up && up.tagName !== "MAIN"; up = up.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(up).overflowX)) return false;
  return true;
}).map((node) => `${node.tagName}.${node.className} ${Math.round(node.getBoundingClientRect().right)}`)"""


@pytest.fixture(autouse=True)
def no_broker(monkeypatch: Any) -> None:
    monkeypatch.setattr("jobs.dispatch.current_app.send_task", lambda name, args, **more: None)


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_the_tuning_form_fits(people: People, tmp_path: Any, language: str) -> None:
    job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))
    with shown(people.client("owner"), width=WIDTH, language=language) as page:
        page.goto("/jobs/tune/")
        assert page.locator("#coverage table").count() == 1
        assert page.evaluate(TOO_WIDE) == []


@pytest.mark.parametrize("address", ["/", "/jobs/"])
def test_a_chinese_kind_stands_on_one_line(people: People, address: str) -> None:
    Model.objects.create(team=people.owner.team, name="Tiny", slug="tiny")
    name, now = "demo-1126-003917", timezone.now()
    for kind in ("import", "tune"):
        Job.objects.create(
            team=people.owner.team, kind=kind, name=name, state="succeeded", started_at=now, ended_at=now
        )
    with shown(people.client("owner"), width=WIDTH, language="zh-hans") as page:
        page.goto(address)
        for words in ("构建与调优", "导入模型"):
            cell = page.locator("td", has_text=words).first
            lines = cell.evaluate(
                "(node) => { const range = document.createRange(); range.selectNodeContents(node); return range.getClientRects().length; }"
            )
            assert lines == 1, words


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_both_blocks_of_a_layout_are_seen_whole(people: People, tmp_path: Any, language: str) -> None:
    version = make_version(people, tmp_path)
    spec = {"moe_layers": [1, 3], "num_experts": 8, "top_k": 2}
    layout = layout_create(caller=people.owner, name="Eight", base_version_id=version.pk, spec=spec)
    with shown(people.client("owner"), width=WIDTH, language=language) as page:
        page.goto(f"/layouts/{layout.pk}/")
        for kind in ("dense", "experts"):
            box = page.locator(f".block.{kind}").bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= WIDTH, kind
            assert box["height"] > 120
        page.locator(".blocks").screenshot(path=str(tmp_path / f"blocks-{language}.png"))
