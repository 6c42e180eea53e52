"""Keys share the engine evenly; within a key the lower priority goes first, then the older."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.block_pool import BlockPool
from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.fair_queue import MAX_IDLE_KEYS, FairQueue
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Scheduler
from moe_core.engine.sequence import Sequence
from tests.moe_core.engine.conftest import PlainStream


def sequence(number: int, key: str, *, tokens: int = 4, priority: int = 0) -> Sequence:
    ids = list(range(number * 1000, number * 1000 + tokens))
    params = SamplingParams(max_tokens=100)
    return Sequence(
        number, "", ids, tokens, params, Detokenizer(PlainStream()), fair_key=key, priority=priority
    )


def waiting(*sequences: Sequence) -> FairQueue:
    queue = FairQueue()
    for one in sequences:
        queue.open(one)
        queue.push(one)
    return queue


def order(queue: FairQueue) -> list[int]:
    return [one.id for one in queue]


def test_one_key_alone_is_served_in_the_order_of_arrival() -> None:
    assert order(waiting(*(sequence(number, "a") for number in (1, 2, 3)))) == [1, 2, 3]


def test_a_key_with_many_requests_does_not_push_back_one_with_few() -> None:
    queue = waiting(*(sequence(number, "many") for number in range(1, 6)), sequence(6, "few"))
    assert order(queue) == [1, 6, 2, 3, 4, 5]


def test_within_a_key_the_lower_priority_goes_first_and_other_keys_do_not_care() -> None:
    queue = waiting(
        sequence(1, "a", priority=5), sequence(2, "a", priority=-5), sequence(3, "b", priority=1000)
    )
    assert order(queue) == [2, 3, 1]


def test_the_key_that_was_served_less_comes_first() -> None:
    queue = waiting(sequence(1, "a"), sequence(2, "b"))
    queue.charge(next(iter(queue)), 10)
    assert order(queue) == [2, 1]


def test_a_key_that_was_away_has_saved_up_nothing() -> None:
    busy, late = sequence(1, "busy"), sequence(2, "late")
    queue = waiting(busy)
    queue.charge(busy, 500)
    queue.open(late)
    queue.push(late)
    assert queue.served("late") == 500


@pytest.mark.parametrize("keys_between", [0, MAX_IDLE_KEYS + 50])
def test_a_key_that_nobody_knew_has_no_claim_on_one_that_was_served_before(keys_between: int) -> None:
    """Though nobody waits when it comes, and many have come and gone since."""
    numbers = count(1)
    served = sequence(next(numbers), "served before")
    queue = waiting(served)
    queue.charge(served, 1_000_000)
    for number in range(keys_between):
        # Held, and cancelled before it was its turn to wait.
        queue.open(held := sequence(next(numbers), f"key-{number}"))
        queue.close(held)
    queue.remove(served)
    queue.close(served)
    for number in range(keys_between):
        queue.open(held := sequence(next(numbers), f"key-{number}"))
        queue.close(held)
    for _ in range(8):
        queue.open(new := sequence(next(numbers), "new"))
        queue.push(new)
    back = sequence(next(numbers), "served before")
    queue.open(back)
    queue.push(back)
    assert queue.served("new") == queue.served("served before") == 1_000_000
    assert queue.window(2)[1] is back


def test_a_key_that_leaves_for_a_moment_keeps_what_it_was_served() -> None:
    greedy, other = sequence(1, "greedy"), sequence(2, "other")
    queue = waiting(greedy, other)
    queue.charge(greedy, 500)
    queue.remove(greedy)
    queue.close(greedy)
    queue.open(sequence(3, "greedy"))
    assert queue.served("greedy") == 500
    assert queue.served("other") == 0


def test_what_is_known_of_idle_keys_is_bounded() -> None:
    queue = FairQueue()
    for number in range(MAX_IDLE_KEYS + 50):
        one = sequence(number, f"key-{number}")
        queue.open(one)
        queue.close(one)
    assert len(queue._idle) == MAX_IDLE_KEYS
    assert not queue._num_open
    assert not queue._served


def test_who_lost_its_place_comes_before_all_others_and_can_leave() -> None:
    first, second = sequence(1, "a"), sequence(2, "b")
    queue = waiting(second)
    queue.open(first)
    first.num_preemptions = 1
    queue.push_preempted(first)
    assert order(queue) == [1, 2]
    assert len(queue) == 2
    queue.remove(first)
    assert order(queue) == [2]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.integers(-2, 2)), max_size=30))
def test_the_order_holds_everyone_once_and_each_key_s_own_order(sizes) -> None:
    sequences = [sequence(i, key, tokens=n, priority=p) for i, (key, n, p) in enumerate(sizes)]
    queue = waiting(*sequences)
    found = list(queue)
    assert sorted(one.id for one in found) == list(range(len(sequences)))
    assert queue.window(5) == found[:5]
    for key in "abc":
        own = [(one.priority, one.id) for one in found if one.fair_key == key]
        assert own == sorted(own)
    for one in sequences:
        queue.remove(one)
        queue.close(one)
    assert len(queue) == 0


@given(st.integers(2, 5), st.integers(1, 4), st.integers(8, 40))
def test_keys_that_always_ask_are_served_alike_whatever_the_size_of_their_requests(
    num_keys: int, max_sequences: int, budget: int
) -> None:
    """Key number k sends prompts k + 1 times as long as key 0's, and answers of another length; one of them waits always."""
    planner = Scheduler(
        BlockPool(400),
        max_batch_tokens=budget,
        max_chunk_tokens=8,
        max_sequences=max_sequences,
        max_waiting=500,
    )
    number, served = 0, Counter()

    def ask(key: int) -> None:
        nonlocal number
        number += 1
        planner.submit(sequence(number, str(key), tokens=6 * (key + 1)))

    for key in range(num_keys):
        for _ in range(max_sequences + 1):
            ask(key)
    for _ in range(600):
        chunks = planner.schedule()
        planner.commit(chunks)
        for chunk in chunks:
            one = chunk.sequence
            served[one.fair_key] += chunk.num_tokens if chunk.start < one.num_prompt_tokens else 0
            if chunk.wants_sample:
                one.token_ids.append(7)
                served[one.fair_key] += 2
            if one.num_output_tokens >= 5 + int(one.fair_key):
                planner.remove(one)
                ask(int(one.fair_key))
    # Nobody is ahead by more than what one of the longest requests takes for each place in the batch.
    most = 6 * num_keys + 2 * (5 + num_keys)
    assert max(served.values()) - min(served.values()) <= most * (max_sequences + 1)
