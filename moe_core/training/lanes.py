"""Work shared out between threads that each compute alone: a batch is split, not a matrix product.

With OpenMP every operation ends at a barrier, and on a machine that does other work too each barrier may cost a time
slice. Here every lane runs its part of a batch from end to end with one thread; lanes meet once a step. Results depend
on the number of lanes and on nothing else: parts are split and added up in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from moe_core.training.losses import release_room

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """A fixed number of threads; a context manager. One lane runs in the caller's thread."""

    def __init__(self, num_lanes: int) -> None:
        self.num_lanes = num_lanes
        self._pool = ThreadPoolExecutor(num_lanes, "lane") if num_lanes > 1 else None

    def __enter__(self) -> Lanes:
        # Inside a lane there is one thread; the number is the process's.
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        # A lane's own goes with its thread; the caller's thread stays.
        release_room()

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results in the order of the items; an error of any of them is raised."""
        if self._pool is None:
            return [work(item) for item in items]
        return list(self._pool.map(work, items))

    def split(self, places: Sequence[int]) -> list[Sequence[int]]:
        """The places dealt out to the lanes in turn; fewer parts when there are fewer places."""
        return [places[lane :: self.num_lanes] for lane in range(min(self.num_lanes, len(places)))]


def summed(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Gradients of all lanes added up in float32, lane by lane."""
    totals = [gradient.float() for gradient in parts[0]]
    for part in parts[1:]:
        for total, gradient in zip(totals, part, strict=True):
            total += gradient
    return totals
