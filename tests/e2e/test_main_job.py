"""The main job, clicked by hand from an empty installation to a live board: import, lay experts, map domains, bring logs,
build and tune, add an expert, deploy, make a key, ask, watch. The model and the logs are real; only the tuning is short.

The pages that it leaves behind are then photographed in both languages and both themes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.e2e.conftest import SHOTS, Stack, dress
from tests.e2e.test_shell import LOOKS, STUMBLES, name_of

# The suite's five minutes a test are for hangs; this walk imports, tunes and serves a real model.
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1500)]

IMPORT_MS, TUNE_MS, OPERATE_MS, READY_MS = 180_000, 480_000, 240_000, 120_000


def go(page: Page, key: str) -> None:
    """Follow the rail, as a person does."""
    page.locator(".rail .line a", has_text=key).click()
    page.wait_for_load_state()


def succeed(page: Page, within_ms: int) -> None:
    """Watch a job's page until it says that it succeeded; it must move by itself."""
    states = page.locator(".head .state")
    expect(states).to_contain_text("succeeded", timeout=within_ms)


def import_the_model(page: Page, stack: Stack) -> None:
    page.goto(stack.url("/"))
    page.get_by_role("button", name="Import SmolLM2-135M-Instruct").click()
    succeed(page, IMPORT_MS)
    go(page, "Models")
    page.get_by_role("link", name="SmolLM2-135M-Instruct").first.click()


def lay_experts(page: Page) -> None:
    go(page, "Layouts")
    page.get_by_role("link", name="New layout").first.click()
    page.locator("#id_name").fill("Support experts")
    page.get_by_role("textbox", name="Layers with experts").fill("10, 20")
    expect(page.locator("#answer")).to_contain_text("Active", timeout=10_000)
    page.get_by_role("button", name="Save the layout").click()
    expect(page.locator("h1")).to_have_text("Support experts")


def map_domains(page: Page) -> None:
    go(page, "Domains")
    page.get_by_role("button", name="Make the example map").first.click()
    expect(page.locator("h1")).to_contain_text("Example domains")


def bring_logs(page: Page) -> None:
    go(page, "Logs and corpora")
    page.get_by_role("button", name="Use the sample logs").first.click(timeout=120_000)
    expect(page.locator("h1")).to_contain_text("Sample logs")
    expect(page.locator(".verdict .lamp")).to_have_attribute("data-state", "ok", timeout=60_000)


def build_and_tune(page: Page) -> None:
    """The smallest run that passes every stage; what it gains is `./turnout demo`'s to prove."""
    go(page, "Jobs")
    page.get_by_role("link", name="Build and tune").first.click()
    few = {
        "Steps for each expert": "1",
        "Steps for the router": "1",
        "Tokens a batch": "64",
        "Tokens a window": "32",
        "Held-out windows": "1",
    }
    for label, value in few.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Expert layout").select_option(index=1)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("[data-live-state]")).to_contain_text("live", timeout=20_000)
    succeed(page, TUNE_MS)
    page.get_by_role("link", name="Look at v2").click()
    expect(page.locator(".title")).to_contain_text("v2")


def add_an_expert(page: Page) -> None:
    """One operation on the experts of the version that was tuned; its result is the next version, with its report."""
    page.get_by_role("link", name="Change experts").click()
    page.get_by_role("link", name="Add one").click()
    # A form begins with the version that it was opened from, and with the newest logs.
    expect(page.get_by_label("Model version").locator("option:checked")).to_contain_text("v2")
    expect(page.get_by_label("Logs").locator("option:checked")).to_contain_text("Sample logs")
    page.get_by_label("Prompts of each domain").fill("1")
    page.get_by_label("Tokens of a prompt, at most").fill("8")
    page.get_by_role("button", name="Start").click()
    succeed(page, OPERATE_MS)
    page.get_by_role("link", name="Look at v3").click()
    expect(page.locator(".title")).to_contain_text("v3")
    expect(page.locator("main")).to_contain_text("Add one: made from v2 by job")
    report = page.locator('section[aria-labelledby="operated-title"]')
    expect(report).to_contain_text("No domain's loss rose by more than chance.")
    expect(report.locator("tbody tr")).not_to_have_count(0)


def deploy(page: Page) -> None:
    go(page, "Deployments")
    page.get_by_role("link", name="Deploy a version").first.click()
    page.locator("#id_name").fill("support-prod")
    tuned = page.locator("#id_version option", has_text="v2").get_attribute("value")
    page.locator("#id_version").select_option(tuned)
    expect(page.locator("main")).to_contain_text("It fits", timeout=10_000)
    page.get_by_role("button", name="Deploy", exact=True).click()
    expect(page.locator(".verdict")).to_contain_text("answers on 1 replica", timeout=READY_MS)


def make_a_key(page: Page, stack: Stack) -> None:
    """A key made by hand lets a program in; without it the same address refuses."""
    go(page, "Gateway and keys")
    go(page, "API tokens")
    page.get_by_role("button", name="New token").first.click()
    page.locator("#id_name").fill("website")
    page.get_by_role("button", name="Make the token").click()
    secret = page.locator(".secret code").inner_text()
    ask = page.context.browser.new_context().request  # type: ignore[union-attr]
    models = ask.get(stack.url("/v1/models"), headers={"Authorization": f"Bearer {secret}"}).json()
    assert [one["id"] for one in models["data"]] == ["support-prod"]
    assert ask.get(stack.url("/v1/models")).status == 401


def ask(page: Page) -> None:
    """An answer streams in, with its figures; the trace says where the tokens went."""
    go(page, "Playground")
    page.locator("#domain").select_option("support")
    page.locator("#max_tokens").fill("24")
    page.locator("#prompt").fill("How do I change the password of my account?")
    page.keyboard.press("Enter")
    answer = page.locator(".turn.assistant")
    expect(answer.locator(".meta")).to_contain_text(
        re.compile("ended by itself|cut at the limit"), timeout=60_000
    )
    assert len(answer.locator(".words").inner_text().split()) > 3
    for figure in ("first", "pace", "prompt", "output"):
        assert re.search(r"\d", page.locator(f'[data-figure="{figure}"]').inner_text()), figure
    page.get_by_role("button", name="Trace the prompt").click()
    expect(page.locator("#xray .route circle.lamp1").first).to_be_visible(timeout=20_000)
    expect(page.locator("#xray")).to_contain_text("goes to the experts of its domain")


def watch(page: Page, stack: Stack) -> None:
    """The board moves while requests run, and is never more than a second behind."""
    go(page, "Live")
    expect(page.locator("[data-live-state]")).to_contain_text("behind", timeout=20_000)
    page.evaluate(
        """async () => {
        const { streamChat } = await import("/static/console/js/stream.js");
        const body = { model: "support-prod", messages: [{ role: "user", content: "Tell a long story about a small town by the sea." }], max_tokens: 400 };
        window.asked = streamChat("/v1/chat/completions", body, {});
    }"""
    )
    expect(page.locator('[data-kpi="running"]')).to_have_text("1", timeout=20_000)
    page.wait_for_function(
        """() => {
        const words = document.querySelector("[data-live-state]").textContent;
        return parseFloat(words.match(/([0-9.]+) s behind/)?.[1] ?? "9") <= 1.0;
    }""",
        timeout=20_000,
    )
    page.get_by_role("button", name="Show as table").click()
    expect(page.locator("#heat-table tbody tr")).to_have_count(2)
    page.locator("#heat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#cell-id")).to_contain_text("L")
    page.evaluate("window.asked.finished")


@pytest.fixture
def visited(page: Page) -> Iterator[list[str]]:
    """Every address that the walk came by, detail pages included."""
    seen: list[str] = []
    page.on(
        "framenavigated",
        lambda frame: seen.append(urlsplit(frame.url).path) if frame is page.main_frame else None,
    )
    yield seen


def test_the_main_job_is_done_by_hand(
    page: Page, stack: Stack, context: BrowserContext, visited: list[str]
) -> None:
    import_the_model(page, stack)
    lay_experts(page)
    map_domains(page)
    bring_logs(page)
    build_and_tune(page)
    add_an_expert(page)
    deploy(page)
    make_a_key(page, stack)
    ask(page)
    watch(page, stack)
    photograph(page, stack, context, visited)


def settle(page: Page) -> None:
    """Let a live page get its first frame, where it has one; a picture of dashes shows nothing."""
    live = (
        "() => [...document.querySelectorAll('[data-kpi]')].every((node) => node.textContent.trim() !== '—')"
    )
    with contextlib.suppress(PlaywrightTimeout):
        page.wait_for_function(live, timeout=3_000)


def photograph(page: Page, stack: Stack, context: BrowserContext, visited: list[str]) -> None:
    """Every page that the walk passed, in each look; what stumbles there fails the test."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    stumbles = []
    for theme, language in LOOKS:
        dress(context, stack, theme, language)
        for path in dict.fromkeys(one for one in visited if one.startswith("/")):
            page.goto(stack.url(path))
            stumbles += [f"{path} {theme} {language}: {one}" for one in page.evaluate(STUMBLES)]
            settle(page)
            page.screenshot(path=SHOTS / f"job-{name_of(path)}-{theme}-{language}.png", full_page=True)
    assert not stumbles, "\n".join(stumbles)
