"""The form of an operation foretells in a real browser what will be, while one types."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from jobs.models import Job
from tests.apps.jobs.fixtures import make_corpus
from tests.apps.registry.fixtures import make_version, moe_spec
from tests.in_browser import shown

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]


def test_what_will_be_follows_what_is_typed_and_a_preview_is_one_button(people, tmp_path) -> None:
    version = make_version(people, tmp_path, spec=moe_spec(), name="Mixture")
    make_corpus(people)
    with shown(people.client("owner"), 390) as page:
        page.goto(f"/jobs/operate/?operation=grow&model_version={version.pk}")
        experts = page.locator("[data-foreseen='num_experts'] td").last
        expect(experts).to_have_text("16")
        page.fill("#id_num_experts", "32")
        expect(experts).to_have_text("32")
        page.fill("#id_num_experts", "20")
        expect(page.locator("#foreseen")).to_contain_text("times a power of two")
        page.get_by_role("link", name="Remove one").click()
        expect(experts).to_have_text("7")
        page.fill("#id_expert", "3")
        page.get_by_role("button", name="Preview").click()
        page.wait_for_url("**/jobs/*/")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    job = Job.objects.get()
    assert job.is_preview and job.inputs["operate"]["operation"]["expert"] == 3
