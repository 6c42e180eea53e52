"""The demo follows a job aloud: a line that moves where somebody watches, whole lines where they go into a file."""

from __future__ import annotations

from typing import Any

from console.demo.state import LINE_EVERY_S, Progress


def told(show: Progress, capsys: Any, **job: Any) -> str:
    show({"state": "running", "stage": "specialise", **job})
    return capsys.readouterr().out


def test_into_a_file_a_long_stage_says_every_few_seconds_how_far_it_is(capsys: Any) -> None:
    now = 100.0
    show = Progress(watched=False, clock=lambda: now)
    assert "14 %" in told(show, capsys, progress=0.14)
    assert not told(show, capsys, progress=0.15), "a line for each percent would be too many"
    now += LINE_EVERY_S
    assert not told(show, capsys, progress=0.14), "nothing has moved"
    assert "40 %" in told(show, capsys, progress=0.4)
    assert "41 %" in told(show, capsys, progress=0.41, stage="route"), "a new stage is told at once"
    assert "100 %" in told(show, capsys, progress=1.0, stage="route", state="succeeded")


def test_on_a_terminal_every_change_moves_the_one_line(capsys: Any) -> None:
    show = Progress(watched=True)
    assert told(show, capsys, progress=0.14).startswith("\r")
    assert "15 %" in told(show, capsys, progress=0.15)
    assert told(show, capsys, progress=1.0, state="succeeded").endswith("\n")
