"""Which experts are held in fast memory: the rules alone, without any memory. Used by the engine and by simulations.

Every layer is visited once a step, always in the same order, so the next use of an expert lies at the next visit of its
layer, if it is used then. With p the chance that a visit uses the expert, its next use is expected after
d + L · (1/p - 1) visits, where d is how far away its layer is. The expert whose next use is expected latest gives way:
Belady's rule on expectations. How p follows from how often and how recently an expert was used is learned from the
trace itself: in waves of one domain after the other recency tells all, under steady traffic frequency does.

Shapes: L expert layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

# How much one visit weighs in the average: the memory is some ten steps long.
FORGETTING = 0.1
# The table of chances: visits since the last use, by how often; how fast it forgets, and from how many cases it is believed.
IDLE_EDGES = np.array([1, 2, 3, 5, 9, 17, 33])
IDLE_GUESS = np.array([0.6, 0.4, 0.25, 0.15, 0.08, 0.04, 0.02, 0.01])
OFTEN_EDGES = np.array([0.01, 0.03, 0.06, 0.12, 0.25, 0.5])
TABLE_FORGETTING, DOUBT = 1e-3, 4.0
LEAST_CHANCE = 1e-4
Key = tuple[int, int]
# A layer and the experts that its tokens went to, in the order of computation.
Visit = tuple[int, tuple[int, ...]]


class ExpertCache:
    """The set of resident experts, `capacity` of them over all layers.

    Raises ValueError when a single visit might need more than `capacity`.
    """

    def __init__(self, num_layers: int, num_experts: int, capacity: int) -> None:
        if capacity < num_experts:
            raise ValueError(
                f"capacity ({capacity}) must hold the {num_experts} experts that one layer may need at once"
            )
        self.capacity = min(capacity, num_layers * num_experts)
        self.resident_LE: NDArray[np.bool_] = np.zeros((num_layers, num_experts), dtype=np.bool_)
        # How often each was used of late.
        self.often_LE: NDArray[np.float64] = np.full((num_layers, num_experts), 1.0 / num_experts)
        # Visits of its layer since it was used.
        self._idle_LE = np.full((num_layers, num_experts), IDLE_EDGES[-1] + 1, dtype=np.int64)
        # Of experts as frequent and as recent: how many there were at a visit, and how many it used.
        self._seen_IF = np.zeros((len(IDLE_EDGES) + 1, len(OFTEN_EDGES) + 1))
        self._used_IF = np.zeros_like(self._seen_IF)
        # When each was last used, to tell equals apart.
        self._used_at_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._num_visits = 0
        self._num_resident = 0
        # The chance that each expert of the next layer is used after each of this one.
        self._follows_LEE = np.full((num_layers, num_experts, num_experts), 1.0 / num_experts)
        self._last: Visit | None = None

    def visit(self, layer: int, experts: Sequence[int]) -> tuple[list[int], list[Key]]:
        """Note a visit; the experts that have to be fetched, and those that give way to them."""
        missing = [expert for expert in experts if not self.resident_LE[layer, expert]]
        self.note(layer, experts)
        keep = [(layer, expert) for expert in experts]
        return missing, self.admit([(layer, expert) for expert in missing], layer, keep=keep)

    def admit(self, keys: Sequence[Key], layer: int, *, keep: Iterable[Key]) -> list[Key]:
        """Hold further experts from this visit of `layer` on; what gives way to them, none of `keep`."""
        evicted = self._make_room(len(keys), layer, keep)
        for key in keys:
            self.resident_LE[key] = True
        self._num_resident += len(keys)
        return evicted

    def prefetch(self, layer: int, most: int) -> tuple[list[Key], list[Key]]:
        """What the layer after `layer` will probably use and is not resident, likeliest first, and what gives way."""
        assert self._last is not None
        after = (layer + 1) % self.resident_LE.shape[0]
        experts = list(self._last[1])
        likely_E = self._follows_LEE[layer, experts].max(0) * ~self.resident_LE[after]
        wanted = [int(expert) for expert in np.argsort(-likely_E)[:most] if likely_E[expert] > 0.5]
        keys: list[Key] = []
        evicted: list[Key] = []
        num_layers = self.resident_LE.shape[0]
        for expert in wanted:
            # Nothing gives way that is expected sooner.
            latest = np.where(self.resident_LE, self._waits(layer), 0.0).max()
            if self._num_resident == self.capacity and latest <= 1 + num_layers * (1 / likely_E[expert] - 1):
                break
            keep = [*((layer, one) for one in experts), *((after, one) for one in wanted)]
            evicted += self.admit([(after, expert)], layer, keep=keep)
            keys.append((after, expert))
        return keys, evicted

    def warm(self, chance_LE: NDArray[np.float64]) -> list[Key]:
        """Take `chance_LE` as what is known beforehand and fill an empty cache by it, likeliest first."""
        self.expect(chance_LE)
        order = np.argsort(-chance_LE, axis=None, kind="stable")[: self.capacity]
        layers, experts = np.unravel_index(order, chance_LE.shape)
        self.resident_LE[layers, experts] = True
        self._num_resident = len(order)
        return list(zip(layers.tolist(), experts.tolist(), strict=True))

    def expect(self, chance_LE: NDArray[np.float64]) -> None:
        """Take `chance_LE` as what is known beforehand."""
        self.often_LE[:] = np.clip(chance_LE, LEAST_CHANCE, 1.0)

    def note(self, layer: int, experts: Sequence[int]) -> None:
        """Learn from a visit of a layer, and fetch nothing."""
        used = np.asarray(experts, dtype=np.int64)
        self._num_visits += 1
        cells = self._cells(layer)
        self._seen_IF *= 1.0 - TABLE_FORGETTING
        self._used_IF *= 1.0 - TABLE_FORGETTING
        np.add.at(self._seen_IF, cells, 1.0)
        np.add.at(self._used_IF, (cells[0][used], cells[1][used]), 1.0)
        self.often_LE[layer] *= 1.0 - FORGETTING
        self.often_LE[layer, used] += FORGETTING
        self._idle_LE[layer] += 1
        self._idle_LE[layer, used] = 0
        self._used_at_LE[layer, used] = self._num_visits
        if self._last is not None:
            before, experts = self._last
            rows = self._follows_LEE[before, list(experts)] * (1.0 - FORGETTING)
            rows[:, used] += FORGETTING
            self._follows_LEE[before, list(experts)] = rows
        self._last = (layer, tuple(used.tolist()))

    def _cells(self, layer: int | slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row and the column of experts in the table of chances."""
        return np.digitize(self._idle_LE[layer], IDLE_EDGES), np.digitize(self.often_LE[layer], OFTEN_EDGES)

    def chances(self) -> NDArray[np.float64]:
        """The chance of each expert (L, E) that the next visit of its layer uses it."""
        cells = self._cells(slice(None))
        # Until enough was seen, half by how often it was used and half by how recently.
        guess_LE = 0.5 * (self.often_LE + IDLE_GUESS[cells[0]])
        known = self._used_IF[cells] + DOUBT * guess_LE
        return np.clip(known / (self._seen_IF[cells] + DOUBT), LEAST_CHANCE, 1.0)

    def _waits(self, layer: int) -> NDArray[np.float64]:
        """After how many visits, counted from this one of `layer`, each expert is expected to be used."""
        num_layers = self.resident_LE.shape[0]
        distance_L1 = ((np.arange(num_layers) - layer - 1) % num_layers + 1)[:, None]
        waits: NDArray[np.float64] = distance_L1 + num_layers * (1.0 / self.chances() - 1.0)
        return waits

    def _make_room(self, number: int, layer: int, keep: Iterable[Key]) -> list[Key]:
        surplus = self._num_resident + number - self.capacity
        if surplus <= 0:
            return []
        wait_LE = self._waits(layer)
        # Of equals the one that was used longest ago.
        wait_LE += 1e-6 * (self._num_visits - self._used_at_LE)
        wait_LE[~self.resident_LE] = -1.0
        for key in keep:
            wait_LE[key] = -1.0
        latest = np.argpartition(-wait_LE, surplus - 1, axis=None)[:surplus]
        layers, experts = np.unravel_index(latest, wait_LE.shape)
        self.resident_LE[layers, experts] = False
        self._num_resident -= surplus
        return list(zip(layers.tolist(), experts.tolist(), strict=True))


def hit_rate(trace: Sequence[Visit], num_layers: int, num_experts: int, capacity: int) -> float:
    """The share of expert uses that `ExpertCache` finds resident, from empty, without prefetching."""
    cache = ExpertCache(num_layers, num_experts, capacity)
    missed = sum(len(cache.visit(layer, experts)[0]) for layer, experts in trace)
    return 1.0 - missed / sum(len(experts) for _, experts in trace)


def lru_hit_rate(trace: Sequence[Visit], capacity: int) -> float:
    """The same for a cache that drops what was used longest ago."""
    held: dict[Key, None] = {}
    missed = 0
    for layer, experts in trace:
        for expert in experts:
            missed += (layer, expert) not in held
            held.pop((layer, expert), None)
            held[layer, expert] = None
        while len(held) > capacity:
            del held[next(iter(held))]
    return 1.0 - missed / sum(len(experts) for _, experts in trace)


def optimal_hit_rate(trace: Sequence[Visit], capacity: int) -> float:
    """The same for one that knows the future and drops what is used latest: no rule does better.

    Source: Belady 1966, "A study of replacement algorithms for a virtual-storage computer".
    """
    uses = [(layer, expert) for layer, experts in trace for expert in experts]
    ends = list(accumulate(len(experts) for _, experts in trace))
    next_use: list[float] = [float("inf")] * len(uses)
    seen: dict[Key, int] = {}
    for place in range(len(uses) - 1, -1, -1):
        next_use[place] = seen.get(uses[place], float("inf"))
        seen[uses[place]] = place
    held: dict[Key, float] = {}
    missed = start = 0
    for end in ends:
        for place in range(start, end):
            missed += uses[place] not in held
            held[uses[place]] = next_use[place]
        # All of one visit are needed at once: room is made after it, as it would be before the next.
        for _ in range(len(held) - capacity):
            del held[max(held, key=held.__getitem__)]
        start = end
    return 1.0 - missed / len(uses)
