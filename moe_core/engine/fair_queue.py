"""Sequences that wait, in the order in which they should be taken: the key that was served least comes next.

Each key has a counter of the tokens that it was served, those of answers counted twice for they take longer. A key that
begins to wait has it lifted to the least among those that wait, or, where nobody does, to that of the key that waited last:
nobody saves up a claim, and nobody is made to wait for what it was served while others were away or unknown. So counters
of keys that wait differ by U at most, the longest prompt or twice the tokens that run at once, and a key that waits is
served 4 U less than any other at most. Within a key the lower priority number goes first, then the older request. With one
key alone this is the plain order of arrival.

Source: Virtual Token Counter, arXiv 2401.00588, algorithm 2 (lemma 4.3, theorems 4.4 and 4.9).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

from moe_core.engine.sequence import Sequence

OUTPUT_WEIGHT = 2
# Idle keys whose counters are still known.
MAX_IDLE_KEYS = 4096


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.id


class FairQueue:
    """The waiting sequences by key; those that were preempted come before all others."""

    def __init__(self) -> None:
        self._preempted: deque[Sequence] = deque()
        self._by_key: dict[str, list[Sequence]] = {}
        self._num_waiting = 0
        self._served: dict[str, float] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()
        # Sequences of each key that wait or run.
        self._num_open: Counter[str] = Counter()
        # Whose line was the last to become empty.
        self._last_in_line: str | None = None

    def __len__(self) -> int:
        return self._num_waiting + len(self._preempted)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        if self._num_waiting:
            yield from self._fairest()

    def members(self) -> list[Sequence]:
        """Everyone who waits, in no order that matters; cheaper than `iter`."""
        return [*self._preempted, *(one for line in self._by_key.values() for one in line)]

    def served(self, key: str) -> float:
        """The counter of a key; 0 for one that nobody knows."""
        return self._served.get(key, self._idle.get(key, 0.0))

    def open(self, sequence: Sequence) -> None:
        """Note that a new sequence is here; `push` makes it wait."""
        key = sequence.fair_key
        if not self._num_open[key]:
            self._served[key] = self._idle.pop(key, 0.0)
        self._num_open[key] += 1

    def close(self, sequence: Sequence) -> None:
        """Note that a sequence has ended."""
        key = sequence.fair_key
        self._num_open[key] -= 1
        if self._num_open[key]:
            return
        del self._num_open[key]
        self._idle[key] = self._served.pop(key)
        if len(self._idle) > MAX_IDLE_KEYS:
            del self._idle[next(one for one in self._idle if one != self._last_in_line)]

    def push(self, sequence: Sequence) -> None:
        """Add an opened sequence to its key's line."""
        key = sequence.fair_key
        if key not in self._by_key:
            self._served[key] = max(self._served[key], self._level())
        insort(self._by_key.setdefault(key, []), sequence, key=_rank)
        self._num_waiting += 1

    def push_preempted(self, sequence: Sequence) -> None:
        """Add a sequence that lost its place, before all others."""
        self._preempted.appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out, to be run or for good."""
        if sequence.num_preemptions and sequence in self._preempted:
            self._preempted.remove(sequence)
            return
        line = self._by_key[sequence.fair_key]
        place = bisect_left(line, _rank(sequence), key=_rank)
        assert line[place] is sequence
        del line[place]
        self._num_waiting -= 1
        if not line:
            del self._by_key[sequence.fair_key]
            self._last_in_line = sequence.fair_key

    def window(self, size: int) -> list[Sequence]:
        """The first `size` in the order of `iter`."""
        first = list(self._preempted)[:size]
        if len(first) < size and self._num_waiting:
            for sequence in self._fairest():
                first.append(sequence)
                if len(first) == size:
                    break
        return first

    def charge(self, sequence: Sequence, tokens: float) -> None:
        """Add to the counter of a sequence's key."""
        self._served[sequence.fair_key] += tokens

    def _level(self) -> float:
        """Where the counter of a key that begins to wait stands at least."""
        if self._by_key:
            return min(self._served[key] for key in self._by_key)
        return 0.0 if self._last_in_line is None else self.served(self._last_in_line)

    def _fairest(self) -> Iterator[Sequence]:
        """Every line's sequences merged as if each were served its prompt at once."""
        if len(self._by_key) == 1:
            yield from next(iter(self._by_key.values()))
            return
        heads = [(self._served[key], line[0].id, 0, key) for key, line in self._by_key.items()]
        heapq.heapify(heads)
        while heads:
            served, _id, place, key = heapq.heappop(heads)
            line = self._by_key[key]
            yield line[place]
            if place + 1 < len(line):
                cost = len(line[place].token_ids)
                heapq.heappush(heads, (served + cost, line[place + 1].id, place + 1, key))
