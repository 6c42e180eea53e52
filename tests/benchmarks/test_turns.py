"""A gateway gives text alone: it is judged by its engine's tokens, which are asked for when nobody else did."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from benchmarks import against, turns
from benchmarks.client import Answer
from benchmarks.findings import Run
from benchmarks.home import Home
from benchmarks.judge import Verdict
from benchmarks.peers.environment import Unavailable
from benchmarks.peers.server import StartFailed
from benchmarks.prompts import Prompts
from benchmarks.visits import TRIAL, Visit

GOOD = Verdict(0.0, 1.0)


class Asked:
    """A server that answers one text, with tokens or without."""

    peer, precision, stays, note, threads = "Turnout", "16 bits", False, "", 2

    def __init__(self, name: str, text: str, ids: list[int], told: list[str], *, starts: bool = True) -> None:
        self.name, self.text, self.ids, self.told, self.starts = name, text, ids, told, starts

    def start(self, threads: int) -> float:
        self.told.append(f"start {self.name} {threads}")
        if not self.starts:
            raise StartFailed("no socket")
        return 1.0

    def stop(self) -> None:
        self.told.append(f"stop {self.name}")


class Reference:
    """Finds every token right."""

    def verdict(self, precision: str, prompts: list[list[int]], answers: list[list[int]]) -> Verdict:
        return GOOD


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def answers(visit: Visit, prompts: list[list[int]], new: int) -> list[Answer]:
        server: Any = visit.server
        return [Answer(token_ids=server.ids, text=server.text) for _ in prompts]

    monkeypatch.setattr(Visit, "answers", answers)
    return Run(Home(tmp_path), 1.0, TRIAL, only=["Turnout"])


def _judged(run: Run, text: str, engine: Asked | None) -> Verdict:
    run.engines = {} if engine is None else {engine.name: engine}
    prompts = Prompts(list(range(50_000)))
    visit = Visit(Asked("Turnout bf16", text, [], []), prompts, 0, run.note, TRIAL)  # type: ignore[arg-type]
    turns.judged(run, visit, Reference(), prompts)  # type: ignore[arg-type]
    return run.verdicts["Turnout bf16"]


def test_an_engine_that_nobody_named_is_asked_once_and_not_measured(run: Run) -> None:
    told: list[str] = []
    assert _judged(run, "a text", Asked("engine bf16", "a text", [1], told)) == GOOD
    assert told == ["start engine bf16 2", "stop engine bf16"] and not run.samples
    del run.verdicts["Turnout bf16"]
    assert (
        _judged(run, "another", Asked("engine bf16", "a text", [1], told)).refused
        == "its text is not that of engine bf16"
    )
    assert len(told) == 2


def test_without_an_engines_tokens_the_text_is_not_called_wrong(run: Run) -> None:
    told: list[str] = []
    silent = Asked("engine bf16", "", [], told, starts=False)
    assert (
        _judged(run, "a text", silent).refused
        == "engine bf16 gave no tokens by which its text could be judged"
    )
    assert told[-1] == "stop engine bf16"


def test_only_keeps_the_engines_by_which_gateways_are_judged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Asked("engine bf16", "", [], [])
    gateway = Asked("Turnout bf16", "", [], [])
    monkeypatch.setattr(against.turnout, "engine_servers", lambda home, model: [engine])
    monkeypatch.setattr(against.turnout, "gateways", lambda home, model: [gateway])
    assert against.gathered(run, []) == [gateway]
    assert run.engines == {"engine bf16": engine} and list(run.contestants) == ["Turnout bf16"]


def test_a_word_of_only_that_names_nobody_is_refused_with_those_there_are(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(home: object, model: str) -> None:
        raise Unavailable("no wheel")

    written: list[str] = []
    engine = Asked("engine bf16", "", [], [])
    monkeypatch.setattr(against.turnout, "engine_servers", lambda home, model: [engine])
    monkeypatch.setattr(against.turnout, "gateways", lambda home, model: [])
    monkeypatch.setattr(against.turnout, "write_panels", lambda *told, **more: written.append("panels"))
    monkeypatch.setattr(against, "PEERS", {"vllm": lacking})
    for name in ("library", "model_dir", "Prompts"):
        monkeypatch.setattr(against, name, MagicMock())
    monkeypatch.setattr(type(run), "measure_limits", lambda self: None)
    monkeypatch.setattr(against, "Run", lambda *told: run)
    monkeypatch.setattr("sys.argv", ["bench", "--only", "bf16,lama", "--peers", "vllm"])
    assert against.main() == 2
    said = capsys.readouterr().out
    assert "--only lama names nobody; there are engine bf16; vllm cannot be had here: no wheel" in said
    assert not written and not run.contestants


def test_the_hint_for_a_part_without_time_measures_it_alone(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that it names is one that the command line takes, and leaves the rounds out."""
    run.minutes, run.parts = 0.0, ["layers"]
    against.beside(run, [], None, Prompts([]))
    words = run.missing["layers"].partition("./turnout bench ")[2].partition(" measures")[0]
    assert words.replace("''", "").split() == ["--peers", "--no-rounds", "--parts", "layers"]


@pytest.mark.parametrize(("option", "word"), [("--peers", "lama"), ("--parts", "tread")])
def test_a_word_that_names_nothing_is_refused_with_those_that_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, word: str
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", option, f"layers,{word}" if option == "--parts" else word])
    assert against.main() == 2
    told = capsys.readouterr().out
    assert word in told
    assert ("llamacpp" if option == "--peers" else "switches") in told
