"""Whole numbers as people write them: 0-2, 5."""

from __future__ import annotations

import re
from collections.abc import Iterable

RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


class UnreadableRange(ValueError):
    """A part of a text that is no number below the limit and no range of them; `part` is how it was written."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part[:40]


def ranges_text(numbers: Iterable[int]) -> str:
    """0,1,2,5 reads 0-2, 5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def parse_ranges(text: str, *, limit: int) -> list[int]:
    """Read "0-2, 5, 7" as numbers below the limit; raise UnreadableRange naming the first part that is none."""
    numbers: set[int] = set()
    for part in re.split(r"[,，、;；\s]+", re.sub(r" ?[-–] ?", "-", " ".join(text.split()))):
        if not part:
            continue
        found = RANGE.fullmatch(part)
        first = int(found[1]) if found else -1
        last = int(found[2]) if found and found[2] else first
        if not found or first > last or last >= limit:
            raise UnreadableRange(part)
        numbers.update(range(first, last + 1))
    return sorted(numbers)
