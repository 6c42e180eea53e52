"""A console page in a real browser without a server: the test client answers its requests, the test holds its socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from django.contrib.staticfiles import finders
from django.db import connections
from django.test import Client
from playwright.sync_api import Page, Route, sync_playwright

CHROMIUM = os.environ.get("TURNOUT_CHROMIUM") or "/usr/bin/chromium"
ORIGIN = "http://testserver"
ARGUMENTS = ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"]
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


@contextmanager
def shown(client: Client, width: int = 1280, language: str = "en") -> Iterator[Page]:
    """A window of that person; what its scripts complain about fails the test."""
    client.cookies["django_language"] = language
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    # Playwright's loop runs in this thread, where Django would refuse to work; and as in a loop each of its contexts has
    # a database connection of its own, the rows must be committed: `django_db(transaction=True)`.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": width, "height": 844}, base_url=ORIGIN)
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.route(lambda _url: True, lambda route: answer(client, route))
            try:
                yield page
            finally:
                # What the test itself asked while the loop ran has a connection of its own too.
                connections.close_all()
                browser.close()
            assert not complaints, complaints
    finally:
        connections.close_all()
        if before is None:
            del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


def answer(client: Client, route: Route) -> None:
    """Answer as the platform would: files as they lie in the apps, pages by the test client."""
    address = urlsplit(route.request.url)
    if address.path.startswith("/static/"):
        found = finders.find(address.path.removeprefix("/static/"))
        if not found:
            route.fulfill(status=404)
            return
        path = Path(str(found))
        route.fulfill(body=path.read_bytes(), content_type=TYPES.get(path.suffix, "application/octet-stream"))
        return
    reply = client.generic(
        route.request.method, f"{address.path}?{address.query}", route.request.post_data_buffer or b"",
        content_type=route.request.headers.get("content-type", "application/octet-stream"),
        headers={"accept": route.request.headers.get("accept", "*/*")},
    )  # fmt: skip
    connections.close_all()
    headers = {name: value for name, value in reply.items() if name.lower() != "content-security-policy"}
    route.fulfill(status=reply.status_code, headers=headers, body=reply.getvalue())
