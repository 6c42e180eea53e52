"""What a step computes: answers first, prompts in bites, the oldest never starved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.block_pool import BLOCK_TOKENS, BlockPool
from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Scheduler
from moe_core.engine.sequence import Sequence, SequenceState
from tests.moe_core.engine.conftest import PlainStream


def scheduler(num_blocks: int = 100, **changes: int) -> Scheduler:
    options = {"max_batch_tokens": 32, "max_chunk_tokens": 8, "max_sequences": 4, "max_waiting": 100}
    return Scheduler(BlockPool(num_blocks + 1), **(options | changes))


def sequence(number: int, num_tokens: int) -> Sequence:
    # Different tokens for each, so that nothing is shared.
    ids = list(range(number * 1000, number * 1000 + num_tokens))
    return Sequence(number, "", ids, num_tokens, SamplingParams(max_tokens=100), Detokenizer(PlainStream()))


def step(planner: Scheduler) -> list[tuple[int, int, int]]:
    """Plan, pretend to compute, sample a token for each that wants one."""
    chunks = planner.schedule()
    planner.commit(chunks)
    plan = [(chunk.sequence.id, chunk.start, chunk.end) for chunk in chunks]
    for chunk in chunks:
        if chunk.wants_sample:
            chunk.sequence.token_ids.append(chunk.sequence.id * 1000 + 500 + len(chunk.sequence.token_ids))
    return plan


def test_a_prompt_alone_takes_the_whole_budget_and_beside_answers_a_bite() -> None:
    planner = scheduler()
    planner.submit(sequence(1, 40))
    assert step(planner) == [(1, 0, 32)]
    assert step(planner) == [(1, 32, 40)]
    planner.submit(sequence(2, 20))
    assert step(planner) == [(1, 40, 41), (2, 0, 8)]
    assert step(planner) == [(1, 41, 42), (2, 8, 16)]
    assert step(planner) == [(1, 42, 43), (2, 16, 20)]
    assert step(planner) == [(1, 43, 44), (2, 20, 21)]


def test_bites_grow_where_prompts_queue_up_and_never_beyond_the_bound() -> None:
    planner = scheduler(num_blocks=400, max_batch_tokens=512, max_chunk_tokens=128, max_sequences=8)
    planner.submit(sequence(1, 8))
    step(planner)
    planner.submit(sequence(2, 100))
    assert step(planner)[1:] == [(2, 0, 64)]
    assert step(planner)[1:] == [(2, 64, 100)]
    # 164 tokens wait, then 82.
    planner.submit(sequence(3, 164))
    assert step(planner)[2:] == [(3, 0, 82)]
    assert step(planner)[2:] == [(3, 82, 146)]
    planner.submit(sequence(4, 2000))
    assert step(planner)[2:] == [(3, 146, 164), (4, 0, 110)]
    assert step(planner)[3:] == [(4, 110, 238)]


def test_shorter_prompts_have_half_of_the_steps_of_a_long_one() -> None:
    planner = scheduler(num_blocks=400, max_batch_tokens=512, max_chunk_tokens=128, max_sequences=8)
    planner.submit(sequence(1, 8))
    step(planner)
    planner.submit(sequence(2, 600))
    assert step(planner)[1:] == [(2, 0, 128)]
    planner.submit(sequence(3, 100))
    planner.submit(sequence(4, 20))
    # First 3, which has a place first, then whichever has the least left, though it came later.
    assert step(planner)[1:] == [(3, 0, 64), (2, 128, 192)]
    assert step(planner)[1:] == [(3, 64, 100), (4, 0, 20), (2, 192, 264)]
    # The others answer, and the long one has its steps to itself again.
    assert step(planner)[3:] == [(2, 264, 392)]


def test_who_has_the_least_left_comes_first_and_longer_ones_wait_for_the_oldest() -> None:
    planner = scheduler(num_blocks=400, max_batch_tokens=128, max_chunk_tokens=128, max_sequences=8)
    for number, num_tokens in ((1, 400), (2, 90), (3, 30), (4, 1000)):
        planner.submit(sequence(number, num_tokens))
    assert step(planner) == [(1, 0, 128)]
    assert step(planner) == [(2, 0, 64), (1, 128, 192)]
    assert step(planner) == [(2, 64, 90), (3, 0, 30), (1, 192, 264)]
    # Two answer by now; the fourth is longer than what is left of the first.
    assert step(planner)[2:] == [(1, 264, 390)]
    assert step(planner)[2:] == [(1, 390, 400), (4, 0, 116)]


def test_a_long_one_in_the_queue_does_not_keep_shorter_ones_behind_it_from_the_other_half() -> None:
    planner = scheduler(num_blocks=400, max_batch_tokens=128, max_chunk_tokens=128, max_sequences=8)
    for number, num_tokens in ((1, 600), (2, 700), (3, 40)):
        planner.submit(sequence(number, num_tokens))
    assert step(planner) == [(1, 0, 128)]
    assert step(planner) == [(3, 0, 40), (1, 128, 216)]
    # In its turn it comes before whoever is shorter and came later.
    assert [step(planner)[1:] for _ in range(3)] == [[(1, 216, 343)], [(1, 343, 470)], [(1, 470, 597)]]
    planner.submit(sequence(4, 300))
    assert step(planner)[1:] == [(1, 597, 600), (2, 0, 124)]


def test_a_long_prompt_takes_no_more_than_twice_its_steps_whatever_comes() -> None:
    planner = scheduler(num_blocks=1000, max_batch_tokens=128, max_chunk_tokens=64, max_sequences=64)
    planner.submit(sequence(1, 8))
    step(planner)
    long = sequence(2, 640)
    planner.submit(long)
    steps = 0
    while not long.num_output_tokens:
        planner.submit(sequence(3 + steps, 16))
        step(planner)
        steps += 1
    assert 10 <= steps <= 20


def test_bites_stay_small_while_there_is_no_place_for_those_who_wait() -> None:
    planner = scheduler(num_blocks=400, max_batch_tokens=512, max_chunk_tokens=128, max_sequences=2)
    planner.submit(sequence(1, 8))
    step(planner)
    planner.submit(sequence(2, 100))
    planner.submit(sequence(3, 2000))
    assert [step(planner)[1:] for _ in range(2)] == [[(2, 0, 64)], [(2, 64, 100)]]


def test_equal_pieces_of_a_batch_invariant_engine_are_not_cut() -> None:
    planner = scheduler(
        num_blocks=400, max_batch_tokens=512, max_chunk_tokens=128, max_sequences=8, fixed_chunk_tokens=128
    )
    planner.submit(sequence(1, 8))
    step(planner)
    planner.submit(sequence(2, 300))
    assert [step(planner)[1:] for _ in range(3)] == [[(2, 0, 128)], [(2, 128, 256)], [(2, 256, 300)]]


def test_several_short_prompts_share_one_step() -> None:
    planner = scheduler()
    for number in range(1, 4):
        planner.submit(sequence(number, 12))
    assert step(planner) == [(1, 0, 12), (2, 0, 12), (3, 0, 8)]
    assert step(planner) == [(1, 12, 13), (2, 12, 13), (3, 8, 12)]


def test_no_more_sequences_run_than_are_allowed() -> None:
    planner = scheduler(max_sequences=2)
    for number in range(1, 4):
        planner.submit(sequence(number, 4))
    step(planner)
    assert [one.id for one in planner.running] == [1, 2]
    planner.remove(planner.running[0])
    step(planner)
    assert [one.id for one in planner.running] == [2, 3]


def test_a_long_prompt_at_the_head_is_not_overtaken() -> None:
    planner = scheduler(num_blocks=6)
    planner.submit(sequence(1, 40))
    step(planner)
    planner.submit(sequence(2, 60))
    planner.submit(sequence(3, 1))
    step(planner)
    assert [one.id for one in planner.waiting] == [2, 3]


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    planner = scheduler(num_blocks=5)
    planner.submit(sequence(1, 30))
    planner.submit(sequence(2, 30))
    planner.submit(sequence(3, 30))
    while not planner.num_preemptions:
        step(planner)
    assert [one.id for one in planner.running] == [1]
    assert [one.id for one in planner.waiting] == [2, 3]
    assert next(iter(planner.waiting)).block_ids == []
    planner.remove(planner.running[0])
    again = step(planner)
    assert again[0][0] == 2


@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(8, 14),
    st.integers(4, 40),
)
def test_everyone_is_served_within_the_budget_and_no_block_is_lost(
    sizes, num_blocks: int, budget: int
) -> None:
    planner = scheduler(num_blocks=num_blocks, max_batch_tokens=budget)
    left = {}
    for number, (num_tokens, num_answers) in enumerate(sizes, 1):
        planner.submit(sequence(number, num_tokens))
        left[number] = num_tokens + num_answers
    for _ in range(4000):
        plan = step(planner)
        assert sum(end - start for _, start, end in plan) <= budget
        assert len({number for number, _, _ in plan}) == len(plan)
        held = {block for one in planner.running for block in one.block_ids}
        assert planner.pool.num_used == len(held)
        for one in list(planner.running):
            assert len(one.block_ids) * BLOCK_TOKENS >= one.num_computed_tokens
            if len(one.token_ids) >= left[one.id]:
                planner.remove(one)
                assert one.state is SequenceState.FINISHED
                del left[one.id]
        if not left:
            break
        assert plan, "the scheduler stands still"
    assert not left
    assert planner.pool.num_used == 0
