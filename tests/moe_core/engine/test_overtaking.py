"""Shorter prompts go beside a long one, but past nobody of their key with a lower priority, and past nobody for ever."""

from __future__ import annotations

import random
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.engine import overtaking
from moe_core.engine.block_pool import BlockPool
from moe_core.engine.overtaking import MAX_PASSED_STEPS, MOST_AHEAD_TOKENS
from moe_core.engine.scheduler import Scheduler
from moe_core.engine.sequence import Sequence, SequenceState
from tests.moe_core.engine.test_fair_queue import sequence

LONG, NUM_STEPS = 900, 40


def scheduler(max_sequences: int = 16) -> Scheduler:
    return Scheduler(
        BlockPool(4000),
        max_batch_tokens=128,
        max_chunk_tokens=64,
        max_sequences=max_sequences,
        max_waiting=1000,
    )


def step(planner: Scheduler, num_answers: int = 4) -> list[Sequence]:
    """Plan and pretend to compute; those whose answer is whole."""
    chunks, ended = planner.schedule(), []
    planner.commit(chunks)
    for chunk in chunks:
        if chunk.wants_sample:
            chunk.sequence.token_ids.append(7)
            if chunk.sequence.num_output_tokens >= num_answers:
                planner.remove(chunk.sequence)
                ended.append(chunk.sequence)
    return ended


def begun(planner: Scheduler) -> set[int]:
    return {one.id for one in planner.running}


def beside_a_long_one(*waiting: Sequence) -> Scheduler:
    """A prompt of the key "long" has its first step behind it and is not through in the next."""
    planner = scheduler()
    planner.submit(sequence(1, "long", tokens=LONG))
    planner.submit(sequence(2, "long", tokens=LONG))
    step(planner)
    for one in waiting:
        planner.submit(one)
    step(planner)
    return planner


def test_a_shorter_one_passes_nobody_of_its_key_with_a_lower_number() -> None:
    urgent = sequence(3, "a", tokens=LONG, priority=-10)
    planner = beside_a_long_one(urgent, sequence(4, "a", priority=10), sequence(5, "b", priority=10))
    assert begun(planner) == {1, 5}
    alike = sequence(6, "a", priority=-10)
    planner.submit(alike)
    step(planner)
    assert alike.state is SequenceState.RUNNING


def test_a_key_that_is_far_ahead_waits_for_its_turn() -> None:
    for ahead, expected in ((MOST_AHEAD_TOKENS, {1, 3}), (MOST_AHEAD_TOKENS + 1, {1})):
        planner = scheduler()
        for number in (1, 2):
            planner.submit(sequence(number, "long", tokens=LONG))
        step(planner)
        planner.submit(short := sequence(3, "a"))
        least = planner.waiting.served("long")
        planner.waiting.charge(short, least + ahead - planner.waiting.served("a"))
        step(planner)
        assert begun(planner) == expected


class Traffic:
    """Clients of two keys that ask again at once: `long` sends long prompts, `a` short ones."""

    def __init__(self, planner: Scheduler, num_short: int, size: int, priority: int) -> None:
        self.planner, self.size, self.priority = planner, size, priority
        self.numbers = count(1)
        for _ in range(2):
            self.ask("long")
        for _ in range(num_short):
            self.ask("a")

    def ask(self, key: str, tokens: int | None = None, priority: int | None = None) -> Sequence:
        tokens = tokens or (LONG if key == "long" else self.size)
        chosen = self.priority if priority is None and key == "a" else priority or 0
        one = sequence(next(self.numbers), key, tokens=tokens, priority=chosen)
        self.planner.submit(one)
        return one

    def step(self) -> int:
        """How many of key `a` ended."""
        ended = step(self.planner)
        for one in ended:
            self.ask(one.fair_key)
        return sum(one.fair_key == "a" for one in ended)


@pytest.mark.parametrize(("size", "num_short"), [(50, 24), (48, 40), (52, 24)])
@pytest.mark.parametrize("urgent", [True, False])
def test_a_long_prompt_is_not_starved_by_shorter_ones_of_its_own_key(
    size: int, num_short: int, urgent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is charged for those, so that whenever a long prompt has ended the other key has the turn."""
    # By the bound in steps, and without the one in tokens.
    monkeypatch.setattr(overtaking, "MAX_PASSED_STEPS", NUM_STEPS)
    monkeypatch.setattr(overtaking, "MOST_AHEAD_TOKENS", 10**9)
    traffic = Traffic(scheduler(), num_short, size, priority=10 if urgent else 0)
    for _ in range(200):
        traffic.step()
    long = traffic.ask("a", tokens=LONG, priority=-10 if urgent else 0)
    num_steps = num_before = 0
    while long.state is SequenceState.WAITING and num_steps < 3000:
        num_before += traffic.step()
        num_steps += 1
    # A long prompt takes 29 steps at most; its key is ahead by what two of them take, or by less.
    assert num_steps <= (4 * 29 if urgent else NUM_STEPS + 4 * 29)
    # But those that run already, none was let in before it.
    assert not urgent or num_before <= 16


@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_whoever_is_let_in_passes_no_lower_number_and_nobody_longer_than_the_bound(
    seed: int, max_sequences: int, num_keys: int
) -> None:
    lost_at: dict[int, int] = {}
    chance, planner, numbers = random.Random(seed), scheduler(max_sequences), count(1)
    admit, let_in = planner._admit, 0

    def checked(one: Sequence) -> bool:
        nonlocal let_in
        waiting = list(planner.waiting)
        own = [other for other in waiting if other.fair_key == one.fair_key]
        if not admit(one):
            return False
        let_in += 1
        assert one.priority == min(other.priority for other in own)
        if own[0] is not one:
            since = lost_at.get(own[0].id)
            assert since is None or planner.num_steps - since < MAX_PASSED_STEPS
            if waiting[0] is not own[0]:
                lost_at.setdefault(own[0].id, planner.num_steps)
        return True

    planner._admit = checked  # type: ignore[method-assign, assignment]
    for _ in range(400):
        while len(planner.waiting) < 12:
            tokens = chance.choice([8, 16, 40, 60, 300, 700])
            key, priority = f"key {chance.randrange(num_keys)}", chance.choice([0, 0, 0, -1, 1])
            planner.submit(sequence(next(numbers), key, tokens=tokens, priority=priority))
        step(planner, chance.randrange(1, 8))
    assert let_in > 20
