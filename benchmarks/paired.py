"""What switches cost, told to a hundredth: every combination of them in blocks of random order within one run.

The steps of a block follow one another in the same memory, seconds at most apart, so that what a machine does to all of
them falls out of their ratio; the order is drawn anew for each block, so that neither the growth of a sequence nor what the
step before left in the cache goes with a switch. Of a block as many steps have a switch on as off, and the others are on in
as many of either.

Source: Box, Hunter & Hunter 2005, "Statistics for Experimenters", chapters 4 and 5 (randomised blocks, factorial designs);
Efron 1979, "Bootstrap Methods".
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of the sorted pairs so many are left out at either end: whoever interrupts a step takes more than a switch does.
TRIMMED, RESAMPLES = 0.2, 1000
# Before so many blocks an interval says nothing of itself.
LEAST_BLOCKS = 24

Setting = Mapping[str, bool]
# Steps that follow one another: what was on, and what it took.
Block = Sequence[tuple[Setting, float]]
Logs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a switch adds to a step, as a share, with the interval that holds it in 95 of 100 measurements."""

    share: float
    low: float
    high: float
    num_blocks: int

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low

    def told(self, claim: float) -> str:
        """The effect in words; not known where the interval is wider than what is claimed."""
        interval = f"{self.low:+.2%} to {self.high:+.2%}"
        if self.num_blocks < LEAST_BLOCKS:
            return f"not known: {self.num_blocks} blocks are too few"
        if not self.width <= claim:
            return f"not known: {interval} is wider than {claim:.0%}"
        return f"{self.share:+.2%} ({interval})"


def settings(switches: Sequence[str], seed: int) -> Iterator[list[Setting]]:
    """Block after block: every combination of the switches once, in an order drawn anew."""
    drawn = random.Random(seed)
    every: list[Setting] = [
        dict(zip(switches, places, strict=True))
        for places in itertools.product((False, True), repeat=len(switches))
    ]
    while True:
        yield drawn.sample(every, len(every))


def effects_of(blocks: Sequence[Block], seed: int = 0) -> dict[str, Effect]:
    """What each switch adds, with the intervals of samples drawn from the blocks.

    A switch counts by the trimmed mean of its pairs: the logarithm of what a step with it took, less that of the step of the
    same block that differs in this switch alone. So no other switch, nor the block, is in what is trimmed.
    """
    if not blocks:
        return {}
    switches = list(blocks[0][0][0])
    ordered = [sorted(block, key=lambda step: tuple(step[0].values())) for block in blocks]
    seconds = [[taken for _, taken in block] for block in ordered]
    # An axis for each switch, off before on.
    logs_B = np.log(seconds).reshape(len(blocks), *(2 for _ in switches))
    drawn = np.random.default_rng(seed).integers(0, len(blocks), (RESAMPLES, len(blocks)))
    effects: dict[str, Effect] = {}
    for axis, switch in enumerate(switches, start=1):
        pairs_Bs = np.diff(logs_B, axis=axis).reshape(len(blocks), -1)
        share = np.expm1(_trimmed_mean(pairs_Bs, np.arange(len(blocks))[None]))
        low, high = np.quantile(np.expm1(_trimmed_mean(pairs_Bs, drawn)), (0.025, 0.975))
        effects[switch] = Effect(float(share[0]), float(low), float(high), len(blocks))
    return effects


def _trimmed_mean(values_Bs: Logs, drawn_RB: NDArray[np.int64]) -> Logs:
    ordered = np.sort(values_Bs[drawn_RB].reshape(len(drawn_RB), -1), axis=1)
    cut = int(ordered.shape[1] * TRIMMED)
    means: Logs = ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)
    return means
