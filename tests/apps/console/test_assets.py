"""What the browser gets: nothing inline, nothing from elsewhere, nothing that makes markup of text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings

from console.translations import platform_dir

TEMPLATES = sorted((Path(settings.ROOT) / "templates").rglob("*.html"))
STATIC = sorted(path for path in platform_dir().glob("*/static/**/*") if path.is_file())
SCRIPTS = [path for path in STATIC if path.suffix == ".js"]
SHEETS = [path for path in STATIC if path.suffix == ".css"]

INLINE = {
    "a script without src": re.compile(
        r"<script(?![^>]*\bsrc=)(?![^>]*type=\"application/json\")", re.IGNORECASE
    ),
    "a style element": re.compile(r"<style\b", re.IGNORECASE),
    "a style attribute": re.compile(r"<[a-z][^>]*\sstyle\s*=", re.IGNORECASE),
    "an event attribute": re.compile(r"<[a-z][^>]*\son[a-z]+\s*=", re.IGNORECASE),
    "a javascript: address": re.compile(r"javascript:", re.IGNORECASE),
    "an htmx expression": re.compile(r"\bhx-(on|vals\s*=\s*['\"]js)", re.IGNORECASE),
}
ELSEWHERE = re.compile(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", re.IGNORECASE)
MARKUP = re.compile(
    r"\.(?:innerHTML|outerHTML)\s*=|insertAdjacentHTML|document\.write|\beval\(|new Function\("
)


def named(path: Path) -> str:
    return str(path.relative_to(settings.ROOT))


@pytest.mark.parametrize("path", TEMPLATES, ids=named)
def test_a_template_holds_nothing_inline(path: Path) -> None:
    text = path.read_text()
    found = [name for name, pattern in INLINE.items() if pattern.search(text)]
    assert not found, f"{named(path)} holds {', '.join(found)}"
    assert not ELSEWHERE.search(text), "everything is served from here"


@pytest.mark.parametrize("path", TEMPLATES, ids=named)
def test_a_template_never_switches_escaping_off(path: Path) -> None:
    allowed = {"templates/ui/field.html": 1}  # help texts are ours, never a user's
    assert len(re.findall(r"\|\s*safe\b|autoescape off", path.read_text())) <= allowed.get(named(path), 0)


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_script_makes_no_markup_of_text(path: Path) -> None:
    assert not MARKUP.search(path.read_text())
    assert not re.search(r"[\"'`]https?://(?!www\.w3\.org)", path.read_text()), (
        "everything is served from here"
    )


@pytest.mark.parametrize("path", SHEETS, ids=named)
def test_a_sheet_loads_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert "@import" not in text
    assert not ELSEWHERE.search(text)


def test_nothing_third_party_is_committed() -> None:
    strangers = [
        named(path)
        for path in STATIC
        if re.search(r"htmx|alpine|uplot|sortable|jquery|\.min\.", path.name, re.IGNORECASE)
    ]
    assert not strangers


def test_colours_are_named_by_meaning_outside_the_tokens() -> None:
    """A page that names a hue of its own falls out of the dark theme."""
    strays = [
        f"{named(path)}: {found}"
        for path in SHEETS
        if path.name != "tokens.css"
        for found in re.findall(r"(?<![\w-])#[0-9a-f]{3,8}\b(?![^{};]*\{)", path.read_text())
    ]
    assert not strays
