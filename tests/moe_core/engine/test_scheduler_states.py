"""Whatever comes, leaves and is cancelled in whatever order: no block is lost, nobody is forgotten."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from moe_core.engine.block_pool import BlockPool
from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Scheduler
from moe_core.engine.sequence import Sequence, SequenceState
from moe_core.errors import EngineBusy
from tests.moe_core.engine.conftest import PlainStream

NUM_BLOCKS = 12


class SchedulerStates(RuleBasedStateMachine):
    """Requests with one to three answers, of three keys and three prompts that share prefixes."""

    @initialize(fixed=st.sampled_from([0, 16]))
    def begin(self, fixed: int) -> None:
        self.planner = Scheduler(
            BlockPool(NUM_BLOCKS + 1),
            max_batch_tokens=24,
            max_chunk_tokens=16,
            max_sequences=4,
            max_waiting=10,
            fixed_chunk_tokens=fixed,
        )
        self.alive: list[Sequence] = []
        self.number = 0

    @rule(
        key=st.sampled_from("abc"),
        prompt=st.integers(0, 2),
        tokens=st.integers(1, 70),
        choices=st.integers(1, 3),
        priority=st.integers(-1, 1),
    )
    def submit(self, key: str, prompt: int, tokens: int, choices: int, priority: int) -> None:
        leader_id = 0
        for _ in range(choices):
            self.number += 1
            one = Sequence(
                self.number, "", [prompt + place for place in range(tokens)], tokens, SamplingParams(max_tokens=9),
                Detokenizer(PlainStream()), fair_key=key, priority=priority, leader_id=leader_id,
            )  # fmt: skip
            try:
                self.planner.submit(one)
            except EngineBusy:
                assert self.planner.num_waiting == 10
                return
            self.alive.append(one)
            leader_id = leader_id or one.id

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            chunks = self.planner.schedule()
            assert bool(chunks) == bool(self.alive)
            assert sum(chunk.num_tokens for chunk in chunks) <= 24
            self.planner.commit(chunks)
            for chunk in chunks:
                if chunk.wants_sample:
                    chunk.sequence.token_ids.append(500 + chunk.sequence.id)
                if chunk.sequence.num_output_tokens >= 9:
                    self.end(chunk.sequence)

    @rule(place=st.integers(0, 30))
    def cancel(self, place: int) -> None:
        if self.alive:
            self.end(self.alive[place % len(self.alive)])

    def end(self, one: Sequence) -> None:
        self.planner.remove(one)
        self.alive.remove(one)
        assert one.block_ids == []

    @invariant()
    def blocks_are_conserved(self) -> None:
        if not hasattr(self, "planner"):
            return
        held = [block for one in self.alive for block in one.block_ids]
        assert self.planner.pool.num_used == len(set(held))
        assert self.planner.pool.num_used + self.planner.pool.num_free == NUM_BLOCKS
        for block in set(held):
            assert self.planner.pool._num_holders[block] == held.count(block)

    @invariant()
    def everyone_has_a_place(self) -> None:
        if not hasattr(self, "planner"):
            return
        by_state = {state: {one.id for one in self.alive if one.state is state} for state in SequenceState}
        assert {one.id for one in self.planner.running} == by_state[SequenceState.RUNNING]
        assert {one.id for one in self.planner.waiting} == by_state[SequenceState.WAITING]
        assert self.planner.num_waiting == len(by_state[SequenceState.WAITING] | by_state[SequenceState.HELD])
        assert not by_state[SequenceState.FINISHED]

    def teardown(self) -> None:
        if not hasattr(self, "planner"):
            return
        for _ in range(3000):
            if not self.alive:
                break
            self.step(1)
        assert not self.alive, "somebody was never served"
        assert self.planner.pool.num_used == 0
        assert not self.planner.waiting._num_open


TestSchedulerStates = SchedulerStates.TestCase
TestSchedulerStates.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
