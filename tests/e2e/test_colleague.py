"""A second person comes in by an invitation, as people do it: in two windows, in both languages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import SHOTS, Stack, Watcher, dress
from tests.e2e.test_shell import STUMBLES

pytestmark = pytest.mark.browser
PASSWORD = "lamps-of-the-north-2026"


@pytest.fixture
def colleague(stack: Stack, chromium: Browser, watcher: Watcher) -> Iterator[Page]:
    """Somebody else's window: Chinese and dark, signed in as nobody."""
    window = chromium.new_context(viewport={"width": 1280, "height": 800})
    dress(window, stack, "dark", "zh")
    shown = window.new_page()
    watcher.follow(shown)
    yield shown
    window.close()


def invitation(page: Page, stack: Stack, note: str, role: str) -> str:
    """Make a link as the admin."""
    page.goto(stack.url("/team/"))
    page.locator(".head [data-open=invite]").click()
    form = page.locator("dialog#invite")
    form.get_by_label("For").fill(note)
    form.get_by_label("Role").select_option(role)
    form.get_by_role("button", name="Make the link").click()
    return page.locator(".secret code").inner_text()


def test_an_invited_person_makes_an_account_and_the_link_is_used_up(
    page: Page, colleague: Page, stack: Stack, watcher: Watcher
) -> None:
    watcher.expected = ("404", "403")
    link = invitation(page, stack, "Mei", "editor")
    colleague.goto(link)
    assert not colleague.evaluate(STUMBLES)
    colleague.screenshot(path=SHOTS / "join-dark-zh.png")
    colleague.locator("input[name=username]").fill("mei")
    colleague.locator("input[name=password]").fill(PASSWORD)
    colleague.get_by_role("button", name="创建账号并加入").click()
    colleague.wait_for_url(stack.address)
    expect(colleague.locator(".toast")).to_contain_text("已加入团队")
    assert (answer := colleague.goto(link)) is not None
    assert answer.status == 404

    page.goto(stack.url("/team/"))
    row = page.locator("tr", has_text="Mei #")
    expect(row).to_contain_text("used")
    expect(row).to_contain_text("by mei")
    member = page.locator("section", has=page.locator("#members")).locator("tr", has_text="mei")
    member.get_by_role("button", name="Change the role…").click()
    dialog = page.locator("dialog[open]")
    dialog.get_by_label("Role").select_option("viewer")
    dialog.get_by_role("button", name="Set the role").click()
    expect(member).to_contain_text("Viewer")
    assert not page.evaluate(STUMBLES)
    page.screenshot(path=SHOTS / "team-invited-light-en.png")

    colleague.goto(stack.url("/team/"))
    colleague.get_by_role("button", name="退出…").click()
    colleague.locator("dialog[open]").get_by_role("button", name="退出团队").click()
    expect(colleague.locator("h1")).to_have_text("尚未加入任何团队")
    assert not colleague.evaluate(STUMBLES)
    colleague.screenshot(path=SHOTS / "no-team-dark-zh.png")


def test_the_reference_of_the_api_opens_and_filters(page: Page, stack: Stack) -> None:
    page.goto(stack.url("/api/"))
    page.locator("#reference-filter").fill("/invitations/")
    expect(page.locator(".operation:visible")).to_have_count(4)
    page.locator("#invitations_create summary").click()
    expect(page.locator("#invitations_create")).to_contain_text("maximum 30")
    page.locator("#invitations_create a", has_text="InvitationMade").click()
    expect(page.locator("#shape-InvitationMade")).to_be_in_viewport()
    assert not page.evaluate(STUMBLES)
