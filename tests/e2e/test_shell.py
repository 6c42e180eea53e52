"""The frame of every page in a real browser: policy, keyboard, languages, themes, narrow screens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.e2e.conftest import PASSWORD, SHOTS, Stack, Watcher, dress

pytestmark = pytest.mark.browser

LOOKS = [("light", "en"), ("light", "zh"), ("dark", "en"), ("dark", "zh")]
NARROW = {"width": 390, "height": 844}
CJK = re.compile(r"[\u4e00-\u9fff]")

STUMBLES = Path(__file__).with_name("stumbles.js").read_text()


def rail_pages(page: Page, stack: Stack) -> list[str]:
    page.goto(stack.url("/"))
    return page.eval_on_selector_all(
        ".rail .line a", "nodes => nodes.map((node) => node.getAttribute('href'))"
    )


def name_of(path: str) -> str:
    return path.strip("/").replace("/", "-") or "overview"


@pytest.mark.parametrize(("theme", "language"), LOOKS)
def test_every_page_of_the_rail_is_whole(
    theme: str, language: str, page: Page, context: BrowserContext, stack: Stack
) -> None:
    dress(context, stack, theme, language)
    SHOTS.mkdir(parents=True, exist_ok=True)
    stumbles = []
    for path in rail_pages(page, stack):
        answer = page.goto(stack.url(path))
        if answer is None or answer.status != 200:
            stumbles.append(f"{path}: {answer and answer.status}")
            continue
        stumbles += [f"{path}: {one}" for one in page.evaluate(STUMBLES)]
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        heading = page.locator("h1").inner_text()
        assert bool(CJK.search(page.locator(".rail").inner_text())) == (language == "zh"), heading
        page.screenshot(path=SHOTS / f"{name_of(path)}-{theme}-{language}.png")
    assert not stumbles, "\n".join(stumbles)


def test_every_page_fits_a_phone(page: Page, context: BrowserContext, stack: Stack) -> None:
    paths = rail_pages(page, stack)
    page.set_viewport_size(NARROW)
    wide = []
    for path in paths:
        page.goto(stack.url(path))
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if over > 1:
            wide.append(f"{path} by {over} px")
        page.screenshot(path=SHOTS / f"{name_of(path)}-phone.png")
    assert not wide


def test_one_goes_anywhere_by_keyboard(page: Page, stack: Stack) -> None:
    page.goto(stack.url("/"))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("g")
    page.keyboard.press("p")
    page.wait_for_url("**/playground/")
    page.locator("#prompt").fill("g o")
    assert page.url.endswith("/playground/"), "single keys never act in a field"
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("audit")
    page.keyboard.press("Enter")
    page.wait_for_url("**/audit/")


def test_the_theme_stays_after_a_reload_and_repaints_what_is_drawn(page: Page, stack: Stack) -> None:
    page.goto(stack.url("/"))
    # Held by day; then as the system, which is day here; then by night.
    switch = page.get_by_role("button", name="Panel: as the system, day or night")
    switch.click()
    expect(page.locator("html")).to_have_attribute("data-theme-choice", "auto")
    switch.click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_language_switch_comes_back_to_the_same_page(page: Page, stack: Stack) -> None:
    page.goto(stack.url("/tokens/?page=1"))
    page.get_by_role("button", name="切换到中文").click()
    expect(page.locator("h1")).to_have_text("API 令牌")
    assert page.url.endswith("/tokens/?page=1")
    page.get_by_role("button", name="Switch to English").click()
    expect(page.locator("h1")).to_have_text("API tokens")


def test_a_token_is_shown_once_and_can_be_revoked(page: Page, stack: Stack) -> None:
    page.goto(stack.url("/tokens/"))
    page.get_by_role("button", name="New token").first.click()
    page.get_by_label("Name", exact=True).fill("nightly build")
    page.get_by_role("button", name="Make the token").click()
    secret = page.locator(".secret code").inner_text()
    assert len(secret) > 30
    page.goto(stack.url("/tokens/"))
    assert secret not in page.content()
    page.get_by_role("row", name="nightly build").get_by_role("button", name="Revoke…").click()
    page.get_by_role("button", name="Revoke the token").click()
    expect(page.get_by_role("row", name="nightly build")).to_contain_text("revoked")
    expect(page.locator(".toast")).to_contain_text("revoked")


def test_a_refused_dialog_is_open_again_with_the_focus_on_what_is_wrong(
    page: Page, stack: Stack, watcher: Watcher
) -> None:
    watcher.expected = ("422",)
    page.goto(stack.url("/tokens/"))
    page.get_by_role("button", name="New token").first.click()
    page.get_by_label("Name", exact=True).fill("nothing")
    for scope in page.locator("#new-token [name=scopes]").all():
        scope.uncheck()
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#new-token .error")).to_be_visible()
    expect(page.locator("#new-token [name=scopes]").first).to_be_focused()


def test_strangers_are_sent_to_sign_in_and_come_back(
    chromium: object, stack: Stack, admin_state: object
) -> None:
    window = chromium.new_context()  # type: ignore[attr-defined]
    page = window.new_page()
    page.goto(stack.url("/playground/"))
    assert "/signin/" in page.url
    page.get_by_label("Username").fill("lin")
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Username").fill("lin")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/playground/")
    window.close()


def test_an_inline_script_would_not_run(page: Page, stack: Stack, watcher: Watcher) -> None:
    watcher.expected = ("Content Security Policy",)
    page.goto(stack.url("/"))
    page.evaluate(
        """() => {
        const script = document.createElement("script");
        script.textContent = "window.broken = 1";
        document.body.append(script);
    }"""
    )
    assert page.evaluate("window.broken") is None


def test_the_page_says_when_its_answer_never_came(page: Page, stack: Stack, watcher: Watcher) -> None:
    watcher.expected = ("Failed to load resource",)
    page.goto(stack.url("/playground/"))
    page.route("**/v1/chat/completions", lambda route: route.abort())
    # It was served when the page came, and is gone when somebody asks.
    page.evaluate("""() => {
        document.querySelector("#model").append(new Option("ghost", "ghost", true, true));
        document.querySelector("#send").disabled = false;
    }""")
    page.locator("#prompt").fill("Hello?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant .meta")).to_contain_text("No answer from the server")
    expect(page.locator("#prompt")).to_have_value("Hello?")
