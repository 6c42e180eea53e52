"""Versions below these have published holes that touch us; the lock and the installed packages stay above."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "django": ("5.2.17", "header spoofing, upload limits and cache leaks under ASGI"),
    "djangorestframework": ("3.17.2", "body size limits that could be passed by"),
    "daphne": ("4.2.2", "WebSocket frames without a limit"),
    "jinja2": ("3.1.6", "sandbox escapes; transformers brings it, tests alone use it"),
    "torch": ("2.10", "reading weights could run code"),
    "redis": ("4.5.5", "answers handed to the wrong reader after a cancel"),
    "aiohttp": ("3.12.14", "request smuggling"),
    "cryptography": ("44.0.1", "OpenSSL fixes"),
    "h11": ("0.16.0", "request smuggling through chunked bodies"),
}
LOCK = dict(
    re.findall(r"^([a-z0-9-]+)==([^\s;+]+)", (ROOT / "requirements" / "lock.txt").read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("name", FLOORS)
def test_the_lock_is_above_the_floor(name):
    floor, reason = FLOORS[name]
    assert Version(LOCK[name]) >= Version(floor), reason


@pytest.mark.parametrize("name", FLOORS)
def test_what_is_installed_is_above_the_floor(name):
    floor, reason = FLOORS[name]
    assert Version(importlib.metadata.version(name)) >= Version(floor), reason


def test_every_package_that_we_ask_for_is_locked():
    asked = set()
    for path in (ROOT / "requirements").glob("*.in"):
        # Installed without their dependencies, at their own exact versions.
        if path.name in ("model.in", "compiler.in"):
            continue
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                asked.add(re.split(r"[=\[<>; ]", line)[0].lower())
    assert asked - set(LOCK) == set()


def test_torch_is_pinned_exactly():
    assert LOCK["torch"] == "2.13.0"


def test_django_stays_on_its_long_term_release():
    assert LOCK["django"].startswith("5.2.")
