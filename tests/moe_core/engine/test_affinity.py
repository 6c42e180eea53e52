"""Requests that share experts are served together; nobody is made to wait for it beyond the bound."""

from __future__ import annotations

import random

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
from moe_core.engine.scheduler import Scheduler
from moe_core.engine.sequence import Sequence
from moe_core.spec import MoeSpec
from tests.moe_core.engine.conftest import MOE, PlainStream, Run, serve_spec

MOE_SPEC = MoeSpec.parse(MOE | {"moe_layers": [0, 1], "num_experts": 8})


def counts_of(num_domains: int) -> RoutingCounts:
    """Each domain's tokens went to two experts of its own in every layer."""
    counts = RoutingCounts(MOE_SPEC, torch.zeros(num_domains, 8), 64)
    for domain in range(num_domains):
        counts.counts_PNLE[0, domain + 1, :, 2 * domain : 2 * domain + 2] = 500
    return counts


def sequence(number: int, domain: int, tokens: int = 4) -> Sequence:
    ids = list(range(number * 1000, number * 1000 + tokens))
    params = SamplingParams(max_tokens=100)
    return Sequence(number, "", ids, tokens, params, Detokenizer(PlainStream()), domain=domain)


def choose(waiting: list[int], running: list[int], **options: int) -> int:
    affinity = ExpertAffinity(counts_of(4), max_delay_steps=10)
    made = [[sequence(n, domain) for n, domain in enumerate(side)] for side in (waiting, running)]
    return affinity.choose(*made, options.get("now_step", 0))


def test_whoever_shares_experts_with_those_that_run_goes_first() -> None:
    assert choose([0, 1, 2], [2, 2]) == 2
    assert choose([0, 1, 2, 1], [1]) == 1


@pytest.mark.parametrize(
    ("waiting", "running"), [([0, 1], []), ([3, 3, 3], [0]), ([0, 1], [2]), ([1, 0], [1]), ([0, 1], [0, 1])]
)
def test_without_a_saving_the_order_stays(waiting, running) -> None:
    assert choose(waiting, running) == 0


def test_a_domain_that_was_never_seen_is_predicted_by_all_others() -> None:
    counts = counts_of(2)
    counts.counts_PNLE[0, 1] = 0
    affinity = ExpertAffinity(counts, max_delay_steps=10)
    running, waiting = [sequence(1, 1)], [sequence(2, 0), sequence(3, 1)]
    assert affinity.choose(waiting, running, 0) in (0, 1)
    nothing = ExpertAffinity(RoutingCounts(MOE_SPEC, torch.zeros(2, 8), 64), max_delay_steps=10)
    assert nothing.choose(waiting, running, 0) == 0


def test_who_was_overtaken_long_enough_goes_first() -> None:
    waiting = [sequence(1, 0), sequence(2, 1), sequence(3, 2)]
    waiting[1].overtaken_at_step = 5
    affinity = ExpertAffinity(counts_of(4), max_delay_steps=10)
    running = [sequence(9, 2)]
    assert affinity.choose(waiting, running, 14) == 2
    assert affinity.choose(waiting, running, 15) == 1


def serve(
    arrivals: list[tuple[int, int, int]], bound: int | None, max_sequences: int = 3
) -> tuple[list[int], int]:
    """The step at which each (step of arrival, domain, answer tokens) was taken; experts read, summed over steps."""
    affinity = None if bound is None else ExpertAffinity(counts_of(4), max_delay_steps=bound)
    planner = Scheduler(
        BlockPool(400), max_batch_tokens=64, max_chunk_tokens=64, max_sequences=max_sequences, max_waiting=500,
        affinity=affinity,
    )  # fmt: skip
    sequences = [sequence(n, domain) for n, (_, domain, _) in enumerate(arrivals)]
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
        read += len({chunk.sequence.domain for chunk in chunks})
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


@given(ARRIVALS, st.integers(1, 20), st.integers(1, 4))
def test_nobody_starves_and_nobody_is_overtaken_beyond_the_bound(
    arrivals, bound: int, max_sequences: int
) -> None:
    arrivals = sorted(arrivals)
    taken, _ = serve(arrivals, bound, max_sequences)
    plain, _ = serve(arrivals, None, max_sequences)
    # The bound, and then at worst the longest answer of each place that frees later than it would have.
    longest = max(tokens for _, _, tokens in arrivals) + 1
    for now, then in zip(taken, plain, strict=True):
        assert now - then <= bound + longest * (bound // max_sequences + 2)


def test_a_rare_domain_behind_an_endless_stream_of_another_is_served_within_the_bound() -> None:
    rng = random.Random(1)
    arrivals = sorted([(rng.randrange(200), 0, 6) for _ in range(150)] + [(20, 3, 6)])
    place = arrivals.index((20, 3, 6))
    taken, _ = serve(arrivals, 12)
    plain, _ = serve(arrivals, None)
    assert 0 < taken[place] - plain[place] <= 12 + 7


def test_mixed_domains_read_fewer_experts() -> None:
    rng = random.Random(2)
    arrivals = [(0, rng.randrange(4), 10) for _ in range(60)]
    _, with_affinity = serve(arrivals, 40)
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
