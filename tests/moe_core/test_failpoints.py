"""Failpoints do nothing unless the environment asks, and then exactly what it asks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moe_core import failpoints
from moe_core.errors import SpecError
from moe_core.failpoints import VARIABLE, FailpointRaised, failpoint


@pytest.fixture(autouse=True)
def fresh_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_visits", {})


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    failpoint("a")


def test_only_the_named_place_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "other=raise, a=raise")
    failpoint("b")
    with pytest.raises(FailpointRaised, match="failpoint a"):
        failpoint("a")


def test_it_can_wait_for_a_later_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a=raise@3")
    failpoint("a")
    failpoint("a")
    with pytest.raises(FailpointRaised, match="visit 3"):
        failpoint("a")


def test_an_unknown_action_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a=explode")
    with pytest.raises(SpecError, match="explode"):
        failpoint("a")


def test_kill9_kills() -> None:
    code = "from moe_core.failpoints import failpoint; failpoint('a'); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={VARIABLE: "a=kill9"}, capture_output=True, cwd="."
    )
    assert done.returncode == -9
    assert done.stdout == b""
