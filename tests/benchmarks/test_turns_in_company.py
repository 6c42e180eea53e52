"""What is answered in company is judged as what is answered alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.findings import Run
from benchmarks.home import Home
from benchmarks.judge import Verdict
from benchmarks.turns import NUM_TOGETHER, judged_together
from benchmarks.visits import TRIAL


class Judging:
    def __init__(self, refused: str) -> None:
        self.refused, self.seen = refused, []  # type: ignore[var-annotated]

    def verdict(self, precision: str, prompts: list[list[int]], answers: list[list[int]]) -> Verdict:
        self.seen.append((precision, prompts, answers))
        return Verdict(0.5, 0.1, self.refused)


@pytest.mark.parametrize(("refused", "told"), [("wrong", "3 at once: wrong"), ("", "")])
def test_wrong_tokens_in_company_refuse_a_contestant(tmp_path: Path, refused: str, told: str) -> None:
    run, judge = Run(Home(tmp_path), 1.0, TRIAL), Judging(refused)
    run.verdicts["engine w4"] = Verdict(0.0, 1.0)
    visit: Any = SimpleNamespace(server=SimpleNamespace(name="engine w4", precision="4 bits"))
    answers: Any = [SimpleNamespace(token_ids=[number]) for number in (7, 8, 9)]
    judged_together(run, visit, judge, [[1], [2], [3]], answers)  # type: ignore[arg-type]
    assert run.verdicts["engine w4"].refused == told
    assert judge.seen == [("4 bits", [[1], [2]], [[7], [8]])] and NUM_TOGETHER == 2


def test_text_alone_is_not_judged_so(tmp_path: Path) -> None:
    run, judge = Run(Home(tmp_path), 1.0, TRIAL), Judging("wrong")
    visit: Any = SimpleNamespace(server=SimpleNamespace(name="Turnout w4", precision="4 bits"))
    judged_together(run, visit, judge, [[1]], [SimpleNamespace(token_ids=[])])  # type: ignore[arg-type,list-item]
    assert not judge.seen and not run.verdicts
