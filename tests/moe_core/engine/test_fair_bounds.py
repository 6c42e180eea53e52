"""How far a key may fall behind: the bounds of the Virtual Token Counter, looked for in every stretch of time.

A server of M tokens of memory computes as the paper's: who fits is taken from the queue in its order, all that run get a
token a step. W is what a key was served: a token of a prompt 1, one of an answer 2. U is the larger of the longest prompt
and 2 M.

Source: arXiv 2401.00588, lemma 4.3, theorems 4.4 and 4.9.
"""

from __future__ import annotations

from collections import Counter
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.fair_queue import OUTPUT_WEIGHT, FairQueue
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.sequence import Sequence
from tests.moe_core.engine.conftest import PlainStream

KEYS = "abc"
MEMORY, LONGEST = 40, 20
MOST = max(LONGEST, OUTPUT_WEIGHT * MEMORY)


class Server:
    """Every key keeps as many requests open as it is told, all of one size for a key."""

    def __init__(self, prompts: dict[str, int], answers: dict[str, int]) -> None:
        self.prompts, self.answers = prompts, answers
        self.queue = FairQueue()
        self.running: list[Sequence] = []
        self.num_open: Counter[str] = Counter()
        self.numbers = count(1)
        # After each step: what each key was served so far, and who waited all through it.
        self.served: list[dict[str, int]] = [dict.fromkeys(KEYS, 0)]
        self.waited: list[set[str]] = []

    def step(self, wanted: dict[str, int]) -> None:
        """The requests that are wanted come, who fits begins, and each that runs gets a token."""
        for key in KEYS:
            while self.num_open[key] < wanted[key]:
                self._ask(key)
        served = dict(self.served[-1])
        before = {one.fair_key for one in self.queue}
        while self.queue and self._fits(first := self.queue.window(1)[0]):
            self.queue.remove(first)
            self.queue.charge(first, len(first.token_ids))
            served[first.fair_key] += len(first.token_ids)
            self.running.append(first)
        for one in list(self.running):
            one.token_ids.append(0)
            self.queue.charge(one, OUTPUT_WEIGHT)
            served[one.fair_key] += OUTPUT_WEIGHT
            if one.num_output_tokens == self.answers[one.fair_key]:
                self.running.remove(one)
                self.queue.close(one)
                self.num_open[one.fair_key] -= 1
        self.served.append(served)
        self.waited.append(before & {one.fair_key for one in self.queue})

    def _ask(self, key: str) -> None:
        prompt = [0] * self.prompts[key]
        one = Sequence(
            next(self.numbers),
            "",
            prompt,
            len(prompt),
            SamplingParams(max_tokens=100),
            Detokenizer(PlainStream()),
            fair_key=key,
        )
        self.queue.open(one)
        self.queue.push(one)
        self.num_open[key] += 1

    def _fits(self, one: Sequence) -> bool:
        held = [self.prompts[each.fair_key] + self.answers[each.fair_key] for each in self.running]
        return sum(held) + self.prompts[one.fair_key] + self.answers[one.fair_key] <= MEMORY

    def behind(self, key: str, other: str, *, both_wait: bool) -> int:
        """By how much `key` was served less than `other` in the worst stretch through which it waited."""
        worst, least = 0, None
        for number, waited in enumerate(self.waited):
            before, after = (
                self.served[place][other] - self.served[place][key] for place in (number, number + 1)
            )
            if key not in waited or (both_wait and other not in waited):
                least = None
                continue
            least = before if least is None else min(least, before)
            worst = max(worst, after - least)
        return worst


sizes = st.fixed_dictionaries({key: st.integers(1, LONGEST) for key in KEYS})
phases = st.lists(
    st.tuples(
        st.fixed_dictionaries({key: st.sampled_from([0, 0, 1, 2, 8]) for key in KEYS}), st.integers(1, 120)
    ),
    min_size=1,
    max_size=6,
)


@given(sizes, sizes, phases)
@settings(max_examples=150, deadline=None)
def test_no_key_that_waits_falls_behind_by_more_than_the_bound(
    prompts: dict[str, int], answers: dict[str, int], phases: list[tuple[dict[str, int], int]]
) -> None:
    server = Server(prompts, answers)
    for wanted, num_steps in phases:
        for _ in range(num_steps):
            server.step(wanted)
            waiting = {server.queue.served(one.fair_key) for one in server.queue}
            assert not waiting or max(waiting) - min(waiting) <= MOST
    for key in KEYS:
        for other in KEYS:
            assert server.behind(key, other, both_wait=True) <= 2 * MOST
            assert server.behind(key, other, both_wait=False) <= 4 * MOST


def test_a_key_that_was_served_all_morning_is_not_behind_one_that_comes_in_the_afternoon() -> None:
    server = Server(dict.fromkeys(KEYS, 10), dict.fromkeys(KEYS, 5))
    for wanted, num_steps in (({"a": 4}, 2000), ({}, 10), ({"b": 8}, 20), ({"a": 8, "b": 8}, 400)):
        for _ in range(num_steps):
            server.step(dict.fromkeys(KEYS, 0) | wanted)
    assert all("a" in waited for waited in server.waited[-399:])
    assert server.behind("a", "b", both_wait=False) <= 2 * MOST
