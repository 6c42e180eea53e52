"""A whole installation and a browser in front of it: nothing is mocked, nothing is reached from inside.

The stack is `./turnout up` in a folder and on a port of its own; its first admin is made through the one-time link that
it prints, as a person would. Screenshots go to `$TURNOUT_SHOTS` (default `var/shots`).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SHOTS = Path(os.environ.get("TURNOUT_SHOTS") or ROOT / "var" / "shots")
READY = re.compile(r"(http://\S+?/)(?:setup/\S+/)?(?=\s|$)")
SETUP = re.compile(r"http://\S+/setup/\S+/")
QUIET = [
    "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_PATIENCE_S = 180
# What htmx writes when one leaves a page while a preview is on its way.
HARMLESS = ("htmx:sendAbort", "htmx:afterRequest")
PASSWORD = "northwind-lamps-2026"


@dataclass(slots=True)
class Stack:
    """One running installation."""

    address: str
    setup_link: str
    data_dir: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def url(self, path: str) -> str:
        return self.address.rstrip("/") + path

    def logs(self) -> str:
        """The ends of all logs, for a failing test."""
        parts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in self.data_dir.glob("log/*.log")
        ]
        return "\n".join(["".join(self.lines[-40:]), *parts])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start everything, and stop it as Ctrl-C does."""
    data_dir = tmp_path_factory.mktemp("house")
    ours = ("DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE", "TURNOUT_DATA_DIR", "TURNOUT_RUN_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"TURNOUT_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "turnout"), "up", "--port", str(free_port())],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    running = Stack("", "", data_dir, process)
    try:
        line = wait_for_ready(process, running.lines)
        running.setup_link = SETUP.search(line).group()  # type: ignore[union-attr]
        running.address = running.setup_link.split("setup/")[0]
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()


def wait_for_ready(process: subprocess.Popen[str], seen: list[str]) -> str:
    """Read what the stack says until it names its address; an early end fails with all it said."""
    said: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            seen.append(line)
            said.put(line)
        said.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = said.get(timeout=START_PATIENCE_S)
        except Empty:
            pytest.fail(f"the stack was not ready within {START_PATIENCE_S} s:\n{''.join(seen)}")
        if line is None:
            pytest.fail(f"the stack ended before it was ready:\n{''.join(seen)}")
        if SETUP.search(line):
            return line


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One headless browser for all tests."""
    path = os.environ.get("TURNOUT_CHROMIUM") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def admin_state(stack: Stack, chromium: Browser) -> dict[str, object]:
    """The cookies of the first admin, made through the one-time link."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(stack.setup_link)
    page.get_by_label("Team name").fill("Northwind Support")
    page.get_by_label("User name").fill("lin")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    page.wait_for_url(stack.address)
    state = context.storage_state()
    context.close()
    return dict(state)


@dataclass
class Watcher:
    """Everything that a page complained about."""

    complaints: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def follow(self, page: Page) -> None:
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.complaints.append(f"script error: {error}"))
        page.on("response", self.answered)

    def heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(
            words in message.text for words in (*HARMLESS, *self.expected)
        ):
            self.complaints.append(f"{message.text[:300]} ({message.location.get('url', '')})")

    def answered(self, response: object) -> None:
        status, url = response.status, response.url  # type: ignore[attr-defined]
        if status >= 500:
            self.complaints.append(f"{status} from {url}")


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def context(stack: Stack, chromium: Browser, admin_state: dict[str, object]) -> Iterator[BrowserContext]:
    """A window of the first admin: English, light, 1440 × 900."""
    window = chromium.new_context(storage_state=admin_state, viewport={"width": 1440, "height": 900})  # type: ignore[arg-type]
    dress(window, stack, "light", "en")
    yield window
    window.close()


@pytest.fixture
def page(
    context: BrowserContext, watcher: Watcher, stack: Stack, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """A page whose complaints fail the test."""
    shown = context.new_page()
    watcher.follow(shown)
    failed_before = request.session.testsfailed
    yield shown
    if request.session.testsfailed > failed_before:
        SHOTS.mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=SHOTS / f"failed-{request.node.name}.png", full_page=True)
        sys.stderr.write(stack.logs())
    assert not watcher.complaints, "\n".join(watcher.complaints)


def dress(window: BrowserContext, stack: Stack, theme: str, language: str) -> None:
    """Choose theme and language, as the switches in the shelf do."""
    choice = {"turnout_theme": theme, "django_language": "zh-hans" if language == "zh" else "en"}
    window.add_cookies(
        [{"name": name, "value": value, "url": stack.address} for name, value in choice.items()]
    )
