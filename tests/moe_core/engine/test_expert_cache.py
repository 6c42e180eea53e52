"""The rules of residency: never more than the capacity, always what a visit needs, never better than knowing the future."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.expert_cache import ExpertCache, Visit, hit_rate, lru_hit_rate, optimal_hit_rate

NUM_LAYERS, NUM_EXPERTS = 4, 6
TRACES = st.lists(
    st.sets(st.integers(0, NUM_EXPERTS - 1), min_size=1, max_size=4).map(lambda found: tuple(sorted(found))),
    min_size=1,
    max_size=60,
).map(lambda visits: [(place % NUM_LAYERS, experts) for place, experts in enumerate(visits)])


def skewed(num_steps: int, seed: int = 0, size: int = 2) -> list[Visit]:
    """Some experts are used far more often than others, and which they are changes half way."""
    rng = random.Random(seed)
    trace: list[Visit] = []
    for step in range(num_steps):
        shift = 0 if step < num_steps // 2 else 3
        for layer in range(NUM_LAYERS):
            chosen: set[int] = set()
            while len(chosen) < size:
                chosen.add((min(int(rng.expovariate(0.9)), NUM_EXPERTS - 1) + layer + shift) % NUM_EXPERTS)
            trace.append((layer, tuple(sorted(chosen))))
    return trace


@given(TRACES, st.integers(NUM_EXPERTS, NUM_LAYERS * NUM_EXPERTS + 3), st.booleans())
def test_the_capacity_is_kept_and_a_visit_finds_what_it_needs(trace, capacity: int, prefetches: bool) -> None:
    cache = ExpertCache(NUM_LAYERS, NUM_EXPERTS, capacity)
    held: set[tuple[int, int]] = set()
    for layer, experts in trace:
        missing, evicted = cache.visit(layer, experts)
        assert set(missing) == {expert for expert in experts if (layer, expert) not in held}
        assert set(evicted) <= held
        assert not {(layer, expert) for expert in experts} & set(evicted)
        held = held - set(evicted) | {(layer, expert) for expert in missing}
        if prefetches and len(experts) <= capacity // 4:
            keys, gone = cache.prefetch(layer, 2)
            assert not {(layer, expert) for expert in experts} & set(gone)
            assert not set(keys) & set(gone)
            assert not set(keys) & held
            held = held - set(gone) | set(keys)
        assert len(held) <= capacity
        assert {(int(a), int(b)) for a, b in zip(*np.nonzero(cache.resident_LE), strict=True)} == held


@given(TRACES, st.integers(NUM_EXPERTS, NUM_LAYERS * NUM_EXPERTS))
def test_no_rule_beats_knowing_the_future(trace, capacity: int) -> None:
    best = optimal_hit_rate(trace, capacity)
    assert hit_rate(trace, NUM_LAYERS, NUM_EXPERTS, capacity) <= best + 1e-12
    assert lru_hit_rate(trace, capacity) <= best + 1e-12


def test_belady_by_hand() -> None:
    # Two of one layer may stay: 0 and 1 come again before 2.
    trace = [(0, (0,)), (0, (1,)), (0, (2,)), (0, (0,)), (0, (1,)), (0, (2,))]
    assert optimal_hit_rate(trace, 2) == pytest.approx(2 / 6)
    assert lru_hit_rate(trace, 2) == 0.0
    assert optimal_hit_rate(trace, 3) == pytest.approx(3 / 6)


@pytest.mark.parametrize("capacity", [8, 12, 16])
def test_on_a_skewed_trace_that_shifts_it_is_near_the_best_and_beats_lru(capacity: int) -> None:
    trace = skewed(400)
    found = hit_rate(trace, NUM_LAYERS, NUM_EXPERTS, capacity)
    best, lru = optimal_hit_rate(trace, capacity), lru_hit_rate(trace, capacity)
    assert found >= 0.8 * best
    assert found > lru


def test_what_always_follows_is_read_ahead() -> None:
    cache = ExpertCache(2, 4, 4)
    ahead = 0
    for step in range(80):
        first = step // 4 % 2
        cache.visit(0, [first])
        keys, _ = cache.prefetch(0, 1)
        ahead += keys == [(1, first + 2)]
        missing, _ = cache.visit(1, [first + 2])
        cache.visit(0, [first])
        cache.visit(1, [3 - first])
    assert len(missing) <= 1


def test_warming_fills_by_what_is_known() -> None:
    cache = ExpertCache(2, 3, 3)
    chance = np.array([[0.1, 0.9, 0.1], [0.1, 0.8, 0.2]])
    assert cache.warm(chance) == [(0, 1), (1, 1), (1, 2)]
    assert cache.visit(0, [1]) == ([], [])
    assert cache.visit(1, [0])[0] == [0]


def test_a_capacity_below_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold the 6 experts"):
        ExpertCache(4, 6, 5)
