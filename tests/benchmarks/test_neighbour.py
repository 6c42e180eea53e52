"""The bench of busy neighbours: they burn while it measures, end with it, and its table says what was found."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from benchmarks import neighbour


def test_neighbours_use_a_processor_and_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Seen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str]) -> None:
            super().__init__(command)
            started.append(self)

    monkeypatch.setattr(neighbour.subprocess, "Popen", Seen)
    with pytest.raises(KeyError), neighbour.neighbours(2):
        deadline = time.monotonic() + 30
        while not all(one.poll() is None and _burnt(one.pid) > 0 for one in started):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise KeyError
    assert len(started) == 2
    assert all(one.poll() is not None for one in started)


def _burnt(pid: int) -> int:
    if sys.platform != "linux":
        pytest.skip("a process's time is read from /proc")
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return int(file.read().rsplit(")", 1)[1].split()[11])


class Alternating:
    """Ways whose answers, all but one, are alike."""

    names = ("one thread", "2 threads", "policy")

    def __init__(self, odd: str = "") -> None:
        self.odd = odd
        self.asked: list[str] = []

    def forget(self) -> None:
        pass

    def decode(self, name: str) -> dict[str, Any]:
        self.asked.append(name)
        wall = {"one thread": 10.0, "2 threads": 20.0, "policy": 11.0}[name]
        fewer = {"one thread": 1.0, "2 threads": 0.0, "policy": 0.9}[name]
        return {"wall": wall, "cpu": wall / 2, "fewer": fewer, "answer": [1, 2 if name == self.odd else 3]}


def test_each_way_has_its_turn_in_each_place_and_the_table_its_ratio() -> None:
    ways: Any = Alternating()
    found = neighbour.measured(ways, 0, 5)
    assert [ways.asked[first] for first in range(0, 18, 3)] == [*Alternating.names, *Alternating.names]
    assert {len(taken) for taken in found["ways"].values()} == {5}
    lines = neighbour.rows("model", found)
    assert lines[2] == "| model | 0 | policy | 11.0 (11.0 to 11.0) | 5.5 | 0.55 | 11.0 | 90% |"


def test_an_answer_that_hangs_on_the_number_of_threads_ends_it() -> None:
    ways: Any = Alternating(odd="policy")
    with pytest.raises(RuntimeError, match="number of threads changed an answer"):
        neighbour.measured(ways, 0, 1)
