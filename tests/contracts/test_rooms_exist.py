"""Rooms of the library that pages and docstrings name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import moe_core

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(?<![\w.])moe_core\.([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*)")
PAGES = [
    ROOT / "README.md",
    ROOT / "pyproject.toml",
    ROOT / "moe_core" / "__init__.py",
    *ROOT.glob("docs/**/*.md"),
]


def is_there(first: str, rest: str) -> bool:
    """Whether `moe_core.first` exists, and each further name is a folder, a file, or written in the file before it."""
    if first in moe_core.__all__:
        return True
    at = ROOT / "moe_core"
    for name in (first, *rest.split(".")[1:]):
        if (at / name).is_dir() or (at / f"{name}.py").is_file():
            at = at / name
            continue
        file = at.with_suffix(".py") if at.with_suffix(".py").is_file() else at / "__init__.py"
        return file.is_file() and re.search(rf"\b{name}\b", file.read_text("utf-8")) is not None
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_of_the_library_is_there(page: Path) -> None:
    named = {found.group(0): found.groups() for found in NAMED.finditer(page.read_text("utf-8"))}
    missing = sorted(name for name, (first, rest) in named.items() if not is_there(first, rest))
    assert not missing, f"{page.relative_to(ROOT)} names what is not there"


def test_the_line_of_rooms_names_rooms() -> None:
    text = (ROOT / "docs" / "structures.md").read_text("utf-8")
    line = re.search(r"Inside `moe_core`: `([^`]+)`", text)
    assert line is not None
    rooms = [room for room in re.split(r"[→|\s]+", line.group(1)) if room]
    assert len(rooms) > 6
    assert [room for room in rooms if not (ROOT / "moe_core" / room).is_dir()] == []
