"""The table of guessed tokens: ratios pair by pair, and nothing where our answers are others with guesses."""

from __future__ import annotations

from benchmarks.guesses import ANSWERS, NEW, OURS, OURS_PLAIN, section


def told(differ: int = 0) -> dict[str, object]:
    seconds = {OURS_PLAIN: 0.63, OURS: 0.315, "llama.cpp": 1.26, "llama.cpp, guesses": 0.63}
    samples = {name: [{"wall": one, "cpu": 2 * one, "foreign": 0.0}] * ANSWERS for name, one in seconds.items()}
    return {"4 bits": {"samples": samples, "differ": {OURS: differ, "llama.cpp, guesses": 3}}}


def test_each_way_stands_beside_itself_without_guesses_and_beside_both_of_the_peer() -> None:
    assert NEW == 64
    rows = [line for line in section(told()) if line.startswith("| 4 |")]
    assert rows == [
        "| 4 | **engine, no guesses** | 100.0, 50.0 |  | 2.00, 1.00 |  |",
        "| 4 | **engine** | 200.0, 100.0 | 2.00 (2.00 to 2.00) | 4.00, 2.00 | 0 |",
        "| 4 | llama.cpp | 50.0, 25.0 |  | 1.00, 0.50 |  |",
        "| 4 | llama.cpp, guesses | 100.0, 50.0 | 2.00 (2.00 to 2.00) | 2.00, 1.00 | 3 |",
    ]


def test_answers_that_differ_leave_no_figure() -> None:
    rows = [line for line in section(told(differ=2)) if line.startswith("| 4 |")]
    assert len(rows) == 1
    assert f"refused: 2 of {ANSWERS}" in rows[0]
