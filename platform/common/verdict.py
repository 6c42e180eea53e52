"""A page's answer in one sentence: a lamp, the strong part, the rest."""

from __future__ import annotations

from dataclasses import dataclass

from common.figures import is_chinese


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stands under the title; `state` is a lamp's word."""

    state: str
    strong: str
    rest: str = ""

    @property
    def gap(self) -> str:
        """Between two sentences: English parts them with a space, Chinese does not."""
        return "" if is_chinese() or not self.rest else " "
