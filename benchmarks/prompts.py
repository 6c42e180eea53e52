"""Prompts of real English, the same tokens for everybody: windows of the topics that Python documents itself with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

LONG, SHORT, SUMMARY = 512, 128, 3000


@dataclass(slots=True)
class Prompts:
    """Disjoint windows of one text; each is handed out once in a round, so that no cache of prefixes helps."""

    ids: list[int]

    @classmethod
    def of(cls, model_dir: Path) -> Prompts:
        """The topics in the tokens of a model."""
        from moe_core.checkpoint.tokenizer import Tokenizer

        text = "\n".join(str(topics.topics[name]) for name in sorted(topics.topics))
        return cls(Tokenizer(model_dir).encode(re.sub(r"\n +", " ", text)))

    def window(self, number: int, length: int) -> list[int]:
        """The window of that number; numbers beyond the last begin again, a little further on."""
        count = len(self.ids) // length - 1
        start = number % count * length + number // count * 7
        return self.ids[start : start + length]

    def windows(self, first: int, count: int, length: int) -> list[list[int]]:
        """So many windows one after the other."""
        return [self.window(first + number, length) for number in range(count)]
