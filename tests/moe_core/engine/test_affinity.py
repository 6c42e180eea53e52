"""Requests that share experts are served together; nobody is made to wait for it beyond the bound."""

from __future__ import annotations

import random
from copy import deepcopy
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.affinity import ExpertAffinity
from moe_core.engine.block_pool import BlockPool
from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.engine import Engine
from moe_core.engine.routing_counts import RoutingCounts
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Chunk, Scheduler
from moe_core.engine.sequence import Sequence
from moe_core.spec import MoeSpec
from tests.moe_core.engine.conftest import MOE, PlainStream, Run, serve_spec

MOE_SPEC = MoeSpec.parse(MOE | {"moe_layers": [0, 1], "num_experts": 8})
BOUND = 10


def sequence(number: int, topic: int, tokens: int = 12, *, labelled: bool = True) -> Sequence:
    """One whose tokens are of its topic, half of them its own; its domain is its topic or none."""
    ids = [topic * 1000 + place for place in range(tokens // 2)]
    ids += [5000 + number * 100 + place for place in range(tokens - tokens // 2)]
    params = SamplingParams(max_tokens=100)
    domain = topic if labelled else -1
    return Sequence(number, "", ids, tokens, params, Detokenizer(PlainStream()), domain=domain)


def teach(affinity: ExpertAffinity, counts: RoutingCounts, one: Sequence, experts: tuple[int, int]) -> None:
    """Let a sequence end whose tokens went to these two experts of every layer."""
    counts.set_apart()
    counts.ids_LTK[:, : len(one.token_ids)] = torch.tensor(experts)
    counts.end_of_step([Chunk(one, 0, len(one.token_ids))])
    affinity.learn(one)


def taught(topics: range, bound: int = BOUND, *, labelled: bool = True) -> ExpertAffinity:
    """Each topic's tokens went to two experts of its own."""
    affinity = deepcopy(_taught(topics, labelled))
    affinity.max_delay_steps = bound
    return affinity


@cache
def _taught(topics: range, labelled: bool) -> ExpertAffinity:
    counts = RoutingCounts(MOE_SPEC, torch.zeros(4, 8), 64)
    affinity = ExpertAffinity(counts, max_delay_steps=BOUND, max_sequences=2)
    for number in range(4):
        for topic in topics:
            one = sequence(-1 - 10 * number - topic, topic, labelled=labelled)
            teach(affinity, counts, one, (2 * topic, 2 * topic + 1))
    return affinity


def choose(waiting: list[int], running: list[int], *, labelled: bool = True, topics: range = range(4)) -> int:
    affinity = taught(topics, labelled=labelled)
    sides = ((0, waiting), (50, running))
    made = [
        [sequence(first + n, one, labelled=labelled) for n, one in enumerate(side)] for first, side in sides
    ]
    return affinity.choose(*made, 0)


@pytest.mark.parametrize("labelled", [True, False], ids=["by domain", "by tokens alone"])
def test_whoever_shares_experts_with_those_that_run_goes_first(labelled: bool) -> None:
    assert choose([0, 1, 2], [2, 2], labelled=labelled) == 2
    assert choose([0, 1, 2, 1], [1], labelled=labelled) == 1


def test_a_domain_says_it_of_tokens_that_were_never_seen() -> None:
    affinity = taught(range(4))
    running, waiting = [sequence(9, 2)], [sequence(1, 0), sequence(2, 1), sequence(3, 2)]
    for place, one in enumerate(waiting):
        one.token_ids = [40_000 + 100 * place + token for token in range(12)]
    assert affinity.choose(waiting, running, 0) == 2
    for one in waiting:
        one.id, one.domain = one.id + 10, -1
    assert affinity.choose(waiting, running, 0) == 0


def test_tokens_say_it_where_a_domain_has_no_topic_of_its_own() -> None:
    """All requests carry one domain: what is known of the domain tells nobody from another."""
    counts = RoutingCounts(MOE_SPEC, torch.zeros(1, 8), 64)
    affinity = ExpertAffinity(counts, max_delay_steps=BOUND, max_sequences=2)
    made = {}
    for number in range(12):
        one = made[number] = sequence(number, number % 4)
        one.domain = 0
        if number < 8:
            teach(affinity, counts, one, (2 * (number % 4), 2 * (number % 4) + 1))
    assert affinity.choose([made[8], made[9], made[10]], [made[10]], 0) == 2


def test_nothing_is_learnt_of_what_was_not_counted() -> None:
    counts = RoutingCounts(MOE_SPEC, torch.zeros(2, 8), 64)
    affinity = ExpertAffinity(counts, max_delay_steps=BOUND, max_sequences=2)
    affinity.learn(sequence(1, 0))
    teach(affinity, counts, sequence(2, 0, tokens=4), (0, 1))
    assert affinity.choose([sequence(3, 0), sequence(4, 1)], [sequence(5, 1)], 0) == 0


@pytest.mark.parametrize(
    ("waiting", "running"), [([0, 1], []), ([3, 3, 3], [0]), ([0, 1], [2]), ([1, 0], [1]), ([0, 1], [0, 1])]
)
def test_without_a_saving_the_order_stays(waiting, running) -> None:
    assert choose(waiting, running) == 0


def test_a_domain_that_was_never_seen_is_predicted_by_all_others() -> None:
    affinity = taught(range(1, 3))
    unseen = sequence(3, 0)
    assert affinity.choose([sequence(2, 1), unseen], [sequence(1, 1)], 0) == 0
    assert affinity.choose([sequence(4, 2), unseen, sequence(5, 1)], [sequence(1, 1)], 0) == 2
    nothing = taught(range(0))
    assert nothing.choose([sequence(2, 0), sequence(3, 1)], [sequence(1, 1)], 0) == 0


def test_a_restart_of_the_history_forgets_what_was_learnt() -> None:
    affinity = taught(range(4))
    affinity.forget()
    assert affinity.choose([sequence(1, 0), sequence(2, 1)], [sequence(3, 1)], 0) == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_who_was_overtaken_long_enough_goes_first(labelled: bool) -> None:
    waiting = [sequence(n + 1, n, labelled=labelled) for n in range(3)]
    waiting[1].overtaken_at_step = 5
    affinity = taught(range(4), 10, labelled=labelled)
    running = [sequence(9, 2, labelled=labelled)]
    assert affinity.choose(waiting, running, 14) == 2
    assert affinity.choose(waiting, running, 15) == 1


def test_of_a_request_that_ended_nothing_is_kept_but_what_it_taught() -> None:
    affinity = taught(range(4))
    waiting, running = [sequence(1, 0), sequence(2, 2)], [sequence(9, 2)]
    affinity.choose(waiting, running, 0)
    assert set(affinity._topics) == {1, 2, 9}
    for one in (*waiting, *running):
        affinity.learn(one)
    assert affinity._topics == {}


def test_within_a_key_nobody_goes_before_a_lower_number_for_its_experts() -> None:
    urgent, later, another = sequence(1, 0), sequence(2, 2), sequence(3, 2)
    later.priority, another.priority, another.fair_key = 9, 9, "another key"
    affinity, running = taught(range(4)), [sequence(9, 2)]
    assert affinity.choose([urgent, later], running, 0) == 0
    assert affinity.choose([urgent, later, another], running, 0) == 2
    later.overtaken_at_step = 0
    assert affinity.choose([urgent, later], running, BOUND) == 0


def test_who_was_preempted_goes_before_who_was_overtaken() -> None:
    preempted, due = sequence(1, 0), sequence(2, 2)
    preempted.num_preemptions, due.overtaken_at_step = 1, 0
    assert taught(range(4)).choose([preempted, due], [sequence(9, 2)], BOUND) == 0


def serve(
    arrivals: list[tuple[int, int, int]],
    bound: int | None,
    max_sequences: int = 3,
    *,
    labelled: bool = True,
) -> tuple[list[int], int]:
    """The step at which each (step of arrival, topic, answer tokens) was taken; topics computed, summed over steps."""
    affinity = None if bound is None else taught(range(4), bound, labelled=labelled)
    planner = Scheduler(
        BlockPool(400), max_batch_tokens=64, max_chunk_tokens=64, max_sequences=max_sequences, max_waiting=500,
        affinity=affinity,
    )  # fmt: skip
    sequences = [sequence(n, topic, labelled=labelled) for n, (_, topic, _) in enumerate(arrivals)]
    taken: dict[int, int] = {}
    step = read = 0
    while len(taken) < len(arrivals) or planner.running:
        for one, (arrival, _, _) in zip(sequences, arrivals, strict=True):
            if arrival == step:
                planner.submit(one)
        chunks = planner.schedule()
        for chunk in chunks:
            if chunk.sequence.id not in taken:
                taken[chunk.sequence.id] = step
                check_overtaking(chunk.sequence, planner, step, bound)
        planner.commit(chunks)
        read += len({arrivals[chunk.sequence.id][1] for chunk in chunks})
        for chunk in chunks:
            if chunk.wants_sample:
                chunk.sequence.token_ids.append(7)
            if chunk.sequence.num_output_tokens >= arrivals[chunk.sequence.id][2]:
                planner.remove(chunk.sequence)
        step += 1
    return [taken[number] for number in range(len(arrivals))], read


def check_overtaking(taken: Sequence, planner: Scheduler, step: int, bound: int | None) -> None:
    """The law: nobody who is due stands behind one that was taken although it came later and was not due itself."""
    if bound is None:
        return
    for one in planner.waiting.members():
        since = one.overtaken_at_step
        if since is not None and planner.num_steps - since >= bound and one.id < taken.id:
            assert taken.overtaken_at_step is not None
            assert planner.num_steps - taken.overtaken_at_step >= bound


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=40
)


@given(ARRIVALS, st.integers(1, 20), st.integers(1, 4), st.booleans())
def test_nobody_starves_and_nobody_is_overtaken_beyond_the_bound(
    arrivals, bound: int, max_sequences: int, labelled: bool
) -> None:
    arrivals = sorted(arrivals)
    taken, _ = serve(arrivals, bound, max_sequences, labelled=labelled)
    plain, _ = serve(arrivals, None, max_sequences)
    # The bound, and then at worst the longest answer of each place that frees later than it would have.
    longest = max(tokens for _, _, tokens in arrivals) + 1
    for now, then in zip(taken, plain, strict=True):
        assert now - then <= bound + longest * (bound // max_sequences + 2)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_rare_topic_behind_an_endless_stream_of_another_is_served_within_the_bound(labelled: bool) -> None:
    rng = random.Random(1)
    arrivals = sorted([(rng.randrange(200), 0, 6) for _ in range(150)] + [(20, 3, 6)])
    place = arrivals.index((20, 3, 6))
    taken, _ = serve(arrivals, 12, labelled=labelled)
    plain, _ = serve(arrivals, None)
    assert 0 < taken[place] - plain[place] <= 12 + 7


@pytest.mark.parametrize("labelled", [True, False])
def test_mixed_topics_read_fewer_experts(labelled: bool) -> None:
    rng = random.Random(2)
    arrivals = [(0, rng.randrange(4), 10) for _ in range(60)]
    _, with_affinity = serve(arrivals, 40, labelled=labelled)
    _, without = serve(arrivals, None)
    assert with_affinity < 0.75 * without


def test_the_engine_reads_fewer_experts_and_says_the_same(mixtral) -> None:
    domains = [{"code": f"d{n}", "name_en": f"D{n}", "name_zh": f"领域{n}", "experts": [n]} for n in range(4)]
    found = {}
    for steps in (0, 30):
        spec = serve_spec(
            domains=domains,
            prior_mode="bias",
            prior_strength=50.0,
            max_sequences=3,
            expert_affinity_steps=steps,
        )
        run = Run(Engine(spec, mixtral))
        for domain in range(4):
            run.submit([domain, 9], 4, domain=domain)
            run.until_done()
        run.tokens.clear()
        read: list[int] = []
        counts = run.engine.runner.counts
        end_of_step = counts.end_of_step

        def counted(chunks, counts=counts, read=read, end_of_step=end_of_step, **options):
            tokens = sum(chunk.num_tokens for chunk in chunks)
            read.append(sum(len(torch.unique(layer)) for layer in counts.ids_LTK[:, :tokens]))
            end_of_step(chunks, **options)

        counts.end_of_step = counted
        sequences = [run.submit([40 + n, 7, n], 8, domain=n % 4) for n in range(24)]
        run.until_done()
        found[steps] = sum(read), [run.tokens[one.id] for one in sequences]
    assert found[30][1] == found[0][1]
    assert found[30][0] < found[0][0]
