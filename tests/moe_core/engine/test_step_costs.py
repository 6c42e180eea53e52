"""What steps take, from few of them: between, beyond and against interruptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.step_costs import FIRST_SLOPE, FRESH_STEPS, MOST, OLD_STEPS, StepCosts


def noted(*steps: tuple[int, float], times: int = 2 * FRESH_STEPS) -> StepCosts:
    costs = StepCosts()
    for _ in range(times):
        for num_tokens, seconds in steps:
            costs.note(num_tokens, seconds)
    return costs


def test_before_any_step_each_further_token_costs_the_first_slope() -> None:
    assert [StepCosts().of(number) for number in (1, 2, 5)] == pytest.approx(
        [1.0, 1 + FIRST_SLOPE, 1 + 4 * FIRST_SLOPE]
    )


def test_what_was_seen_is_told_and_what_lies_between_is_interpolated() -> None:
    costs = noted((1, 10.0), (5, 18.0))
    assert costs.of(1) == pytest.approx(10.0)
    assert costs.of(5) == pytest.approx(18.0, rel=0.03)
    assert costs.of(3) == pytest.approx(14.0, rel=0.03)
    # Beyond: as it rose, with the first slope as one token more.
    assert costs.of(6) - costs.of(5) == pytest.approx((FIRST_SLOPE * 10 + 8) / 5, rel=0.05)


def test_of_steps_of_several_alone_one_is_reckoned() -> None:
    assert noted((4, 2.0)).of(1) == pytest.approx(2.0 / (1 + 3 * FIRST_SLOPE))


def test_an_interruption_counts_little_even_in_the_first_step_of_a_size() -> None:
    costs = noted((1, 1.0), (2, 1.3))
    costs.note(3, 100.0)
    assert costs.of(3) < 2.7
    for _ in range(40):
        costs.note(3, 1.6)
    assert costs.of(3) == pytest.approx(1.6, rel=0.05)


def test_what_was_not_seen_for_long_is_forgotten() -> None:
    costs = noted((1, 1.0), (2, 1.9))
    for _ in range(OLD_STEPS + FRESH_STEPS):
        costs.note(1, 1.0)
    assert costs.of(2) == pytest.approx(1 + FIRST_SLOPE)


@given(st.lists(st.tuples(st.integers(1, MOST + 9), st.floats(1e-6, 10.0)), max_size=60))
def test_it_never_falls_and_is_never_nothing(steps) -> None:
    costs = noted(*steps, times=1)
    told = [costs.of(number) for number in range(1, MOST + 20)]
    assert told == sorted(told)
    assert told[0] > 0.0
