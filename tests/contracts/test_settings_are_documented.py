"""Every command and every variable that the code reads stands in docs/reference/commands.md, and nothing else does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from standalone.commands import COMMANDS, help_text

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "commands.md").read_text()
# Set by our own programs for each other, or by tests: not a setting.
INTERNAL = {"TURNOUT_CLOCK", "TURNOUT_ROOT", "TURNOUT_TEST_SERVICES", "TURNOUT_FAILPOINTS"}


def variables_read() -> set[str]:
    rooms = ("platform", "moe_core", "workers", "benchmarks")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    found = {name for path in files for name in re.findall(r"[\"'](TURNOUT_[A-Z_]+)[\"']", path.read_text())}
    return found - INTERNAL


@pytest.mark.parametrize("name", sorted(variables_read()))
def test_each_variable_is_documented(name):
    assert f"`{name}`" in PAGE


def test_no_variable_is_documented_that_nothing_reads():
    assert set(re.findall(r"`(TURNOUT_[A-Z_]+)`", PAGE)) - variables_read() == set()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_is_documented_and_in_the_help(name):
    assert f"`{name}`" in PAGE
    assert re.search(rf"^  {name} ", help_text(), re.MULTILINE)
