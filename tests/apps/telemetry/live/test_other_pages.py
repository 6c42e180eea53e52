"""Other pages beside a serving deployment: the playground offers its domains, the form of a new one counts as it is typed."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import Page, expect

from tests.apps.gateway.served import Instance
from tests.apps.telemetry.live.test_board_page import MODEL, browser, page, seen  # noqa: F401

pytestmark = [pytest.mark.django_db, pytest.mark.browser]


def shot(page: Page, name: str) -> None:  # noqa: F811
    if folder := os.environ.get("TURNOUT_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_the_playground_asks_with_a_domain_of_the_deployment(seen: Instance, page: Page) -> None:  # noqa: F811
    page.goto(f"{seen.web.address}/playground/?model={MODEL}")
    codes = page.locator("#domain option").evaluate_all("nodes => nodes.map((one) => one.value)")
    assert codes[0] == "" and {"support", "copy"} <= set(codes)
    page.locator("#domain").select_option("support")
    page.locator("#max_tokens").fill("8")
    page.locator("#prompt").fill("a question")
    page.locator("#send").click()
    expect(page.locator(".turn.assistant .meta .domain")).to_be_visible(timeout=30_000)
    page.locator("#xray-run").click()
    expect(page.locator("#xray .tokens")).to_be_visible(timeout=30_000)
    shot(page, "playground")


def test_the_form_of_a_new_deployment_follows_what_is_typed(seen: Instance, page: Page) -> None:  # noqa: F811
    page.goto(f"{seen.web.address}/deployments/new/")
    version = page.locator("#proposed-for").input_value()
    page.locator("#id_replicas").fill("2")
    expect(page.locator("#fit")).to_contain_text("2 replicas need", timeout=20_000)
    page.locator("#id_replicas").fill("500")
    expect(page.locator("#fit")).to_contain_text("less than or equal to 8", timeout=20_000)
    # As if the version had been another one: the map's choice and its mark are exchanged in place.
    page.evaluate("document.querySelector('#proposed-for').value = '0'")
    page.evaluate("document.querySelector('#id_domain_map').dataset.old = ''")
    page.locator("#id_replicas").fill("3")
    expect(page.locator("#proposed-for")).to_have_value(version, timeout=20_000)
    expect(page.locator("#id_domain_map[data-old]")).to_have_count(0)
    expect(page.locator("#deploy #id_domain_map")).to_have_count(1)
    shot(page, "new")
    page.goto(f"{seen.web.address}/live/{seen.deployments[MODEL].pk}/")
    page.locator("#domains button").nth(1).click()
    expect(page.locator("#cold-title")).to_contain_text("Not reached", timeout=20_000)
    shot(page, "board")
    page.goto(f"{seen.web.address}/deployments/{seen.deployments[MODEL].pk}/")
    page.get_by_role("button", name="Change version…").click()
    expect(page.locator("#id_update-domain_map")).to_have_value("as-served")
    shot(page, "change")
