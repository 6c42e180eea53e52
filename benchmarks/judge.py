"""Nobody is measured whose tokens are wrong: answers are held against the model in float32."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.home import ROOT

# In sixteen bits a token may lack so much of the logits' spread to the best: rounding at a near-tie.
MOST_GAP = 0.02
# In fewer bits so many tokens must be the best after the same beginning.
LEAST_AGREEMENT = {"16 bits": 0.8, "8 bits": 0.75, "4 bits": 0.5}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How close a contestant's greedy answers are to the reference's."""

    gap: float
    agreement: float
    refused: str = ""


@dataclass(slots=True)
class Judge:
    """The reference in a process of its own."""

    python: Path
    model: Path
    _process: subprocess.Popen[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            [str(self.python), "-m", "benchmarks.fronts.reference", str(self.model)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._line()

    def verdict(self, precision: str, prompts: list[list[int]], answers: list[list[int]]) -> Verdict:
        """What the answers are worth; `refused` says why they are not good enough."""
        found = [self._ask(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        gap = max(one["gap"] for one in found)
        agreement = sum(one["agreement"] for one in found) / len(found)
        refused = ""
        if precision == "16 bits" and not gap <= MOST_GAP:
            refused = f"a token is {gap:.1%} of the logits' spread below the best; {MOST_GAP:.0%} is rounding"
        elif not agreement >= LEAST_AGREEMENT[precision]:
            refused = (
                f"{agreement:.0%} of the tokens are the best; {LEAST_AGREEMENT[precision]:.0%} is the least"
            )
        return Verdict(gap, agreement, refused)

    def _ask(self, prompt: list[int], answer: list[int]) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the reference ended with status {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End it; what was judged stays judged."""
        if self._process.poll() is None:
            self._process.communicate()
