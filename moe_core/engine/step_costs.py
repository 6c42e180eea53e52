"""What a decoding step takes by how many tokens it computes, as this engine measures itself.

Of a mixture each further token reads further experts; of a dense model it reads nothing more, until arithmetic is the
bound. Where that is, is a matter of machine, model and format: so it is measured, and nothing is assumed but a first slope.
"""

from __future__ import annotations

import numpy as np

# Steps of more tokens are taken for steps of so many.
MOST = 64
# What each further token adds, as a share of a step of one, before it was measured.
FIRST_SLOPE = 0.35
# Means run over so many steps; one that an interruption made longer counts as so many times the mean.
MEMORY_STEPS, LONGEST = 16, 2.0
# After so many steps, and the first one of its size, the table is made anew; what was not seen for so many is forgotten.
FRESH_STEPS, OLD_STEPS = 16, 1024


class StepCosts:
    """Running means of the seconds of steps, and what lies between and beyond the sizes that were seen."""

    def __init__(self) -> None:
        # Of each size that was seen: the mean, how many steps it stands for, and the number of the last one.
        self._seen: dict[int, tuple[float, int, int]] = {}
        self._num_steps = 0
        self._table = self._told()

    def note(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step of so many tokens; of more than MOST nothing."""
        if num_tokens > MOST:
            return
        is_new = num_tokens not in self._seen
        # What the others tell of a size counts as its first step: else one interruption would rule it out for long.
        told = self._table[num_tokens] if self._seen else seconds
        mean, count, _ = (told, 1, 0) if is_new else self._seen[num_tokens]
        count = min(count + 1, MEMORY_STEPS)
        self._num_steps += 1
        mean += (min(seconds, LONGEST * mean) - mean) / count
        self._seen[num_tokens] = (mean, count, self._num_steps)
        if is_new or self._num_steps % FRESH_STEPS == 0:
            oldest = self._num_steps - OLD_STEPS
            self._seen = {size: one for size, one in self._seen.items() if one[2] > oldest}
            self._table = self._told()

    def of(self, num_tokens: int) -> float:
        """Seconds of a step of so many tokens, never less than of fewer; before any was seen, in steps of one token."""
        return self._table[min(num_tokens, MOST)]

    def _told(self) -> list[float]:
        sizes = sorted(self._seen)
        seconds = [self._seen[size][0] for size in sizes]
        if not sizes or sizes[0] > 1:
            one = seconds[0] / (1.0 + FIRST_SLOPE * (sizes[0] - 1)) if sizes else 1.0
            sizes, seconds = [1, *sizes], [one, *seconds]
        # Beyond the largest as it rose up to there, of which the first slope is one token more.
        rise = max(0.0, seconds[-1] - seconds[0])
        slope = (FIRST_SLOPE * seconds[0] + rise) / sizes[-1]
        ends = [seconds[0], *seconds, seconds[-1] + slope * (MOST + 1 - sizes[-1])]
        table = np.interp(np.arange(MOST + 1), [0, *sizes, MOST + 1], ends)
        told: list[float] = np.maximum.accumulate(table).tolist()
        return told
