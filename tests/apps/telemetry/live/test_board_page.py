"""The board's page on a real instance, in a browser whose clock is hours off."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect, sync_playwright

from deployments.models import Deployment, Replica
from deployments.states import ReplicaState
from tests.apps.gateway.served import Instance
from tests.e2e.conftest import QUIET

pytestmark = [pytest.mark.django_db, pytest.mark.browser]
MODEL = "seen"
CHROMIUM = os.environ.get("TURNOUT_CHROMIUM") or "/usr/bin/chromium"
# The page's clock stands in tomorrow morning; nothing that measures time may ask it.
SKEWED = """(() => {
  const Real = Date, ahead = 11 * 3600 * 1000;
  window.Date = class extends Real {
    constructor(...given) { given.length ? super(...given) : super(Real.now() + ahead); }
    static now() { return Real.now() + ahead; }
  };
})();"""
STATE = "[data-live-state]"


@pytest.fixture(scope="module")
def browser(instance: Instance) -> Iterator[Browser]:
    """A browser that is gone before the next file: its loop runs in this thread, where Django would refuse to work."""
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    try:
        with sync_playwright() as playwright:
            opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            yield opened
            opened.close()
    finally:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture(scope="module")
def seen(instance: Instance) -> Instance:
    instance.serve(MODEL)
    return instance


@pytest.fixture
def page(seen: Instance, browser: Browser) -> Iterator[Page]:
    """The owner's window; what it complains about fails the test."""
    window = browser.new_context(viewport={"width": 1280, "height": 900})
    name, _equals, value = seen.cookie().partition("=")
    window.add_cookies([{"name": name, "value": value, "url": seen.web.address}])
    window.add_init_script(SKEWED)
    shown, complaints = window.new_page(), []
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield shown
    window.close()
    assert not complaints, complaints


def board_of(seen: Instance) -> str:
    return f"{seen.web.address}/live/{seen.deployments[MODEL].pk}/"


def ask(seen: Instance, domain: str | None, num_tokens: int = 60) -> None:
    body = {
        "model": MODEL,
        "prompt": "a question",
        "max_tokens": num_tokens,
        "temperature": 0,
        "domain": domain,
    }
    status, _headers, reply = seen.ask("POST", "/v1/completions", body, key=seen.key())
    assert status == 200, reply


def test_a_clock_that_is_hours_off_changes_no_figure(seen: Instance, page: Page) -> None:
    ask(seen, "support")
    page.goto(board_of(seen))
    expect(page.locator(STATE)).to_contain_text("behind", timeout=20_000)
    behind = float(re.findall(r"([\d.]+) s behind", page.locator(STATE).inner_text())[0])
    assert behind < 10
    # The newest point of the last hour stands at its right end, not eleven hours away.
    # What nobody watched is written after some seconds, and history is read when the page is.
    for _ in range(20):
        drawn = page.locator("#history path.a").get_attribute("d") or ""
        heights = {float(y) for _x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", drawn)}
        if len(heights) > 1:
            break
        page.wait_for_timeout(1_000)
        page.reload()
        expect(page.locator(STATE)).to_contain_text("behind", timeout=20_000)
    assert len(heights) > 1
    for chosen in ("10 min", "1 h", "Last minute"):
        page.get_by_role("button", name=chosen, exact=True).click()
        expect(page.locator("#own li").first).to_contain_text("%", timeout=20_000)
        assert "NaN" not in page.locator("main").inner_text()


def test_figures_move_while_requests_run_and_each_domain_has_its_share(seen: Instance, page: Page) -> None:
    page.goto(board_of(seen))
    expect(page.locator(STATE)).to_contain_text("behind", timeout=20_000)
    for domain in ("support", "copy", None):
        ask(seen, domain)
    for name in ("output", "first", "inter", "vio", "running", "cache"):
        expect(page.locator(f'[data-kpi="{name}"]')).to_have_text(re.compile(r"\d"), timeout=20_000)
    for row in page.locator("#own li").all():
        expect(row).to_contain_text(re.compile(r"\d+\s%"), timeout=20_000)
    page.get_by_role("button", name="Copy", exact=False).first.click()
    expect(page.locator("#verdict b")).to_contain_text("reach its own experts", timeout=20_000)


TWO_FRAMES = """async () => {
  const { showVerdict } = await import("/static/telemetry/panels.js");
  const { ALL } = await import("/static/telemetry/picture.js");
  const view = { window: "live", phase: null, domain: ALL }, picture = { num_experts: 4, num_layers: 1, counts: [1] };
  const frame = (expert) => showVerdict({ picture, view, known: {}, live: null, found: [{ layer: 0, expert, ratio: 3, load: 1 }] });
  frame(1);
  const text = (id) => document.getElementById(id).textContent;
  const first = text("verdict-spoken");
  frame(2);
  return [text("verdict"), first, text("verdict-spoken")];
}"""


def test_the_verdict_is_of_the_last_frame_and_is_spoken_now_and_then(seen: Instance, page: Page) -> None:
    page.goto(board_of(seen))
    expect(page.locator(STATE)).to_contain_text("behind", timeout=20_000)
    shown, spoken, spoken_later = page.evaluate(TWO_FRAMES)
    assert "expert 2 carries" in shown
    assert "expert 1 carries" in spoken
    assert spoken_later == spoken


def test_what_a_domain_cannot_cut_says_so_and_no_expert_is_called_asleep_for_it(
    seen: Instance, page: Page
) -> None:
    for domain in ("support", "copy"):
        ask(seen, domain)
    page.goto(board_of(seen))
    expect(page.locator("#hot li").first).to_be_visible(timeout=20_000)
    expect(page.locator("#cold-title")).to_contain_text("Asleep")
    page.get_by_role("button", name="Copy", exact=False).first.click()
    for name in ("output", "running", "first", "inter", "reuse"):
        expect(page.locator(f'[data-kpi-note="{name}"]')).to_have_text("of all domains")
    expect(page.locator('[data-kpi-note="vio"]')).not_to_contain_text("all domains")
    expect(page.locator("#time-title small")).to_contain_text("all domains: ")
    expect(page.locator("#cold-title")).to_contain_text("Not reached by the chosen tokens")
    expect(page.locator("#hot .domain")).to_have_count(0)
    assert "no token in" not in page.locator("#cold").inner_text()
    page.locator("#domains button").last.click()
    assert "asleep" not in page.locator("#verdict").inner_text()
    page.get_by_role("button", name="All domains", exact=True).click()
    expect(page.locator('[data-kpi-note="output"]')).not_to_contain_text("all domains")
    expect(page.locator("#cold-title")).to_contain_text("Asleep no token in the window")


def test_arrows_walk_the_lamps_and_space_pauses(seen: Instance, page: Page) -> None:
    ask(seen, "support")
    page.goto(board_of(seen))
    expect(page.locator("#heat-size")).to_contain_text("experts", timeout=20_000)
    page.locator("#heat").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#cell-id").inner_text()
    assert re.fullmatch(r"L\d+·E\d+", first)
    page.keyboard.press("ArrowDown")
    assert page.locator("#cell-id").inner_text() != first
    expect(page.locator("#cell-said")).not_to_be_empty()
    page.keyboard.press(" ")
    expect(page.locator("#pause")).to_contain_text("Resume")
    expect(page.locator(STATE)).to_contain_text("paused by you")
    page.keyboard.press(" ")
    expect(page.locator(STATE)).to_contain_text("behind", timeout=20_000)


# -- a server under our hand ------------------------------------------------------------------


def snapshot(instance: Instance, page: Page) -> dict[str, Any]:
    """A real one, from the real server, to change."""
    return dict(
        page.evaluate(
            """(path) => new Promise((done) => {
                const socket = new WebSocket(path);
                socket.onmessage = ({ data }) => { const told = JSON.parse(data); if (told.type === "snapshot") { socket.close(); done(told); } };
            })""",
            f"ws://127.0.0.1:{instance.web.port}/ws/board/{instance.deployments[MODEL].pk}/",
        )
    )


class Server:
    """Answers pings by a clock of its own, counts what was asked, and sends what the test says."""

    def __init__(self, page: Page, first: dict[str, Any]) -> None:
        self.first, self.resyncs = first, 0
        self.socket: WebSocketRoute | None = None
        page.route_web_socket(re.compile(r"/ws/board/"), self.opened)

    def opened(self, socket: WebSocketRoute) -> None:
        self.socket = socket
        socket.on_message(self.heard)
        self.send(self.first)

    def heard(self, text: str | bytes) -> None:
        said = json.loads(text)
        if said["type"] == "ping":
            self.send({"type": "pong", "t": said["t"], "server_ms": self.first["now_ms"]})
        if said["type"] == "resync":
            self.resyncs += 1
            self.send({**self.first, "seq": 900})

    def send(self, told: dict[str, Any]) -> None:
        assert self.socket is not None
        self.socket.send(json.dumps(told))


def test_a_board_that_fell_silent_keeps_its_lamps_and_says_since_when(seen: Instance, page: Page) -> None:
    page.goto(board_of(seen))
    real = snapshot(seen, page)
    quiet = {**real, "now_ms": real["t_ms"], "sampled_ms": real["t_ms"] - 45_000}
    quiet["gauges"] = {**dict.fromkeys(real["gauges"], 0)}
    Server(page, quiet)
    page.goto(board_of(seen))
    expect(page.locator(STATE)).to_contain_text(
        re.compile(r"no engine reports; last sample 4\d s ago"), timeout=20_000
    )
    expect(page.locator("#heat canvas")).to_be_visible()
    assert "NaN" not in page.locator("main").inner_text()


def test_a_lost_frame_is_asked_for_and_healed_by_a_snapshot(seen: Instance, page: Page) -> None:
    page.goto(board_of(seen))
    real = snapshot(seen, page)
    told = {**real, "now_ms": real["t_ms"], "sampled_ms": real["t_ms"], "seq": 5, "output_tokens": 1}
    server = Server(page, told)
    page.goto(board_of(seen))
    expect(page.locator(STATE)).to_contain_text("behind", timeout=20_000)
    server.first = {**told, "gauges": {**told["gauges"], "running": 77}}
    server.send({**told, "type": "event", "seq": 6, "gauges": {**told["gauges"], "running": 33}})
    expect(page.locator('[data-kpi="running"]')).to_have_text("33")
    server.send({**told, "type": "event", "seq": 9, "gauges": {**told["gauges"], "running": 55}})
    expect(page.locator('[data-kpi="running"]')).to_have_text("77")
    assert server.resyncs == 1


def test_a_frame_that_cannot_be_cut_offers_no_cut(seen: Instance, page: Page) -> None:
    page.goto(board_of(seen))
    real = snapshot(seen, page)
    cells = len(real["layers"]) * real["num_experts"]
    whole = {**real, "now_ms": real["t_ms"], "phases": ["all"], "domains": ["*"]}
    whole["counts"] = base64.b64encode(b"\x05\x00\x00\x00" * cells).decode()
    Server(page, whole)
    page.goto(board_of(seen))
    expect(page.locator("#domains button").nth(1)).to_be_disabled(timeout=20_000)
    expect(page.locator("#phase button").nth(1)).to_be_disabled()
    expect(page.locator("#flow")).to_contain_text("choose 10 min")
    page.get_by_role("button", name="10 min", exact=True).click()
    expect(page.locator("#domains button").nth(1)).to_be_enabled(timeout=20_000)


# -- the engine dies --------------------------------------------------------------------------


def test_the_lamps_of_every_page_are_read_again_while_it_stays_open(seen: Instance, page: Page) -> None:
    page.goto(f"{seen.web.address}/playground/")
    expect(page.locator("#aspects")).to_contain_text("1 deployment")
    served = seen.deployments[MODEL]
    more = Deployment.objects.create(
        team=served.team, name="asleep", desired_version=served.desired_version, desired_replicas=0
    )
    try:
        expect(page.locator("#aspects")).to_contain_text("2 deployments", timeout=20_000)
    finally:
        more.delete()


def test_a_board_that_stays_open_says_when_its_engine_is_dead(seen: Instance, page: Page) -> None:
    page.goto(board_of(seen))
    expect(page.locator("#standing")).to_contain_text("Serving")
    expect(page.locator(STATE)).to_contain_text(re.compile("behind|sample"), timeout=20_000)
    replica = Replica.objects.get(deployment=seen.deployments[MODEL], state=ReplicaState.READY)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    expect(page.locator("#standing")).to_contain_text("Starting", timeout=10_000)
    expect(page.locator("#aspects")).to_contain_text("0 of 1 deployment answers", timeout=10_000)
    # And it follows back.
    expect(page.locator("#standing")).to_contain_text("Serving", timeout=60_000)
    expect(page.locator("#aspects")).not_to_contain_text("answers", timeout=20_000)
