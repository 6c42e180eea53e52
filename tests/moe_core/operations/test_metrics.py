"""Every figure against a number worked out by hand, a slow loop, or a law."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_core.errors import SpecError
from moe_core.operations.metrics import (
    agreement,
    coactivation,
    dead_experts,
    domain_specialisation,
    drop_rate,
    gini,
    jain,
    load_entropy,
    load_figures,
    load_share,
    margins,
    max_violation,
    max_violation_batch,
    rank_balancedness,
    router_z,
    saturation,
    variation,
    vocabulary_specialisation,
)

loads = st.lists(st.lists(st.integers(0, 10_000), min_size=4, max_size=4), min_size=1, max_size=5)
EVEN, SKEW, SOLE = torch.tensor([[10] * 4]), torch.tensor([[25, 5, 5, 5]]), torch.tensor([[40, 0, 0, 0]])


def test_max_violation_is_the_busiest_over_the_mean_less_one() -> None:
    assert max_violation(torch.tensor([[10, 10, 10, 10]])) == 0.0
    # The mean is 10, the busiest has 25.
    assert max_violation(torch.tensor([[25, 5, 5, 5]])) == pytest.approx(1.5)
    # One expert with everything: E - 1.
    assert max_violation(torch.tensor([[40, 0, 0, 0]])) == pytest.approx(3.0)


def test_layers_are_measured_apart_and_then_averaged() -> None:
    # Summed over layers these loads would look even; they are not.
    load_LE = torch.tensor([[40, 0, 0, 0], [0, 40, 0, 0], [0, 0, 40, 0], [0, 0, 0, 40]])
    assert max_violation(load_LE) == pytest.approx(3.0)
    assert load_entropy(load_LE) == pytest.approx(0.0)
    assert max_violation(torch.tensor([[10, 10, 10, 10], [25, 5, 5, 5]])) == pytest.approx(0.75)


def test_entropy_is_one_when_even_and_half_when_half_the_experts_share_the_load() -> None:
    assert load_entropy(torch.tensor([[7, 7, 7, 7]])) == pytest.approx(1.0)
    assert load_entropy(torch.tensor([[7, 7, 0, 0]])) == pytest.approx(math.log(2) / math.log(4))


def test_a_dead_expert_has_less_than_a_hundredth_of_the_fair_share() -> None:
    # The fair share is 1000; 9 is below a hundredth of it, 11 is not.
    assert dead_experts(torch.tensor([[3980, 9, 0, 11]])) == 2
    assert dead_experts(torch.tensor([[1000, 1000, 1000, 1000]])) == 0


@given(loads)
def test_bounds_hold_for_any_load(load: list[list[int]]) -> None:
    load_LE = torch.tensor(load)
    assert 0.0 <= max_violation(load_LE) <= 3.0 + 1e-9
    assert -1e-9 <= load_entropy(load_LE) <= 1.0 + 1e-9


@given(loads, st.permutations(range(4)))
def test_names_of_experts_do_not_matter(load: list[list[int]], order: list[int]) -> None:
    load_LE = torch.tensor(load)
    assert max_violation(load_LE[:, order]) == pytest.approx(max_violation(load_LE))
    assert load_entropy(load_LE[:, order]) == pytest.approx(load_entropy(load_LE))


def test_the_share_of_a_layer_that_routed_nothing_is_zero() -> None:
    assert load_share(torch.tensor([[6, 2], [0, 0]])).tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_variation_is_the_population_deviation_over_the_mean() -> None:
    assert variation(EVEN) == 0.0
    # Deviations 15, -5, -5, -5: variance 300 / 4, so 8.66 over a mean of 10.
    assert variation(SKEW) == pytest.approx(math.sqrt(75) / 10)
    assert variation(SOLE) == pytest.approx(math.sqrt(3))


def test_jain_is_one_over_the_experts_when_one_has_all() -> None:
    assert jain(EVEN) == pytest.approx(1.0)
    assert jain(SOLE) == pytest.approx(0.25)
    # 40² / (4 · (625 + 75)) = 1600 / 2800.
    assert jain(SKEW) == pytest.approx(4 / 7)


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    assert gini(EVEN) == pytest.approx(0.0)
    assert gini(SOLE) == pytest.approx(0.75)
    # Six ordered pairs differ by 20: 120 / 16 = 7.5, half of it over 10.
    assert gini(SKEW) == pytest.approx(0.375)


@given(loads)
def test_gini_equals_the_double_loop(load: list[list[int]]) -> None:
    used = [row for row in load if sum(row)]
    each = [
        sum(abs(a - b) for a, b in itertools.product(row, row)) / (2 * len(row) ** 2 * (sum(row) / len(row)))
        for row in used
    ]
    assert gini(torch.tensor(load)) == pytest.approx(sum(each) / len(each) if each else 0.0)


def test_batches_are_measured_apart_and_the_run_as_a_whole() -> None:
    # Two batches lean to opposite sides: the run is even, no batch is.
    load_BLE = torch.tensor([[[4, 0]], [[0, 4]]])
    assert max_violation_batch(load_BLE) == pytest.approx(1.0)
    assert max_violation(load_BLE.sum(0)) == pytest.approx(0.0)


def test_a_batch_that_routed_nothing_counts_for_no_mean() -> None:
    load_BLE = torch.tensor([[[4, 0]], [[0, 0]], [[2, 2]]])
    assert max_violation_batch(load_BLE) == pytest.approx((1.0 + 0.0) / 2)
    assert max_violation_batch(torch.zeros(2, 1, 2, dtype=torch.long)) == 0.0


@given(st.lists(loads.filter(lambda load: len(load) == 1), min_size=1, max_size=4))
def test_a_run_of_batches_as_long_as_each_other_is_never_less_even_than_they(
    batches: list[list[list[int]]],
) -> None:
    totals = {sum(load[0]) for load in batches}
    if len(totals) == 1 and 0 not in totals:
        load_BLE = torch.tensor(batches)
        assert max_violation(load_BLE.sum(0)) <= max_violation_batch(load_BLE) + 1e-9


def test_ranks_are_measured_per_layer_and_then_averaged() -> None:
    # Each layer puts all on one rank, opposite ones: averaged over layers first it would look even.
    load_LE = torch.tensor([[3, 1, 0, 0], [0, 0, 2, 2]])
    assert rank_balancedness(load_LE, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.0)
    # Ranks {0, 2} and {1, 3}: 3 of 4 in the first layer, 2 of 4 in the second.
    assert rank_balancedness(load_LE, torch.tensor([0, 1, 0, 1])) == pytest.approx((1.5 + 1.0) / 2)


def test_the_drop_rate_counts_choices() -> None:
    assert drop_rate(torch.tensor([[True, False], [True, True]])) == 0.25
    assert drop_rate(torch.ones(0, 2, dtype=torch.bool)) == 0.0


def test_router_z_of_zero_logits_is_the_squared_log_of_the_experts() -> None:
    assert router_z(torch.zeros(3, 8)) == pytest.approx(math.log(8) ** 2)
    assert router_z(torch.zeros(0, 8)) == 0.0


def test_a_margin_is_between_the_last_chosen_and_the_first_not_chosen() -> None:
    scores_TE = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]])
    assert margins(scores_TE, 1).tolist() == pytest.approx([0.2, 0.0])
    assert margins(scores_TE, 2).tolist() == pytest.approx([0.2, 0.0])
    assert margins(scores_TE, 4).tolist() == [math.inf, math.inf]
    assert margins(torch.zeros(0, 4), 2).shape == (0,)


def test_saturation_and_agreement_count_common_experts_in_any_order() -> None:
    early_TK, final_TK = torch.tensor([[0, 1], [2, 3], [0, 1]]), torch.tensor([[1, 0], [2, 0], [2, 3]])
    # 2, 1 and 0 of 2 in common; unions of 2, 3 and 4.
    assert saturation(early_TK, final_TK) == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert agreement(early_TK, final_TK) == pytest.approx((1.0 + 1 / 3 + 0.0) / 3)
    with pytest.raises(SpecError, match="3 and 2 tokens"):
        agreement(early_TK, final_TK[:2])


def test_coactivation_counts_all_pairs_and_not_only_neighbours() -> None:
    # Experts 0 and 2 are never neighbours among a token's k; they are together in both tokens.
    share_EE = coactivation(torch.tensor([[0, 1, 2], [2, 3, 0]]), 5)
    assert share_EE[0].tolist() == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert share_EE[1].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert share_EE[4].tolist() == [0.0] * 5


def test_domain_specialisation_is_the_share_of_a_domains_choices() -> None:
    load_NLE = torch.tensor([[[6, 2]], [[0, 4]]])
    assert domain_specialisation(load_NLE).tolist() == [[[0.75, 0.25]], [[0.0, 1.0]]]


def test_vocabulary_specialisation_is_the_share_of_a_tokens_occurrences() -> None:
    share_VE, peak = vocabulary_specialisation(
        torch.tensor([[0], [0], [1], [1]]), torch.tensor([7, 7, 7, 3]), num_experts=2, vocab_size=9
    )
    assert share_VE[7].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert share_VE[3].tolist() == [0.0, 1.0]
    assert share_VE[0].tolist() == [0.0, 0.0]
    assert peak == pytest.approx((2 / 3 + 1.0) / 2)


def test_nothing_routed_is_nothing_to_complain_of() -> None:
    assert load_figures(torch.zeros(2, 4)) == {
        "max_vio": 0.0, "variation": 0.0, "entropy": 1.0, "jain": 1.0, "gini": 0.0, "dead_experts": 0,
    }  # fmt: skip


# Three tokens of which the first two leave a place empty, as top-p, sparsemax and full experts do.
HOLES = torch.tensor([[0, -1], [2, -1], [2, 1]])


def test_coactivation_counts_no_empty_place() -> None:
    share_EE = coactivation(HOLES, 3)
    # Expert 2 was chosen twice, once together with 1; 1 was chosen once; 0 always alone.
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.5, 0.0]], dtype=torch.float64)
    assert torch.equal(share_EE, expected)
    assert not coactivation(torch.full((2, 2), -1), 3).any()


def test_vocabulary_specialisation_credits_no_empty_place_to_another_token() -> None:
    share_VE, peak = vocabulary_specialisation(HOLES, torch.tensor([0, 5, 5]), 3, 9)
    assert share_VE[0].tolist() == [1.0, 0.0, 0.0]
    assert share_VE[5].tolist() == [0.0, 0.5, 1.0]
    assert not share_VE[[1, 2, 3, 4, 6, 7, 8]].any()
    assert peak == 1.0


def test_empty_places_are_shared_by_nobody() -> None:
    one, other = torch.tensor([[0, -1]]), torch.tensor([[1, -1]])
    assert agreement(one, other) == 0.0 and saturation(one, other) == 0.0
    assert agreement(one, one) == 1.0 and saturation(one, one) == 1.0
    # {0} against {0, 1}: one of two; all of the early one is in the final one's half.
    wide = torch.tensor([[0, 1]])
    assert agreement(one, wide) == 0.5 and saturation(one, wide) == 0.5 and saturation(wide, one) == 1.0
    nobody = torch.tensor([[-1, -1]])
    assert agreement(nobody, nobody) == saturation(wide, nobody) == 1.0
    assert agreement(nobody, wide) == saturation(nobody, wide) == 0.0
    # A token that chose nobody both times does not move the mean of the others.
    assert agreement(torch.cat([one, nobody]), torch.cat([wide, nobody])) == 0.5


def test_a_choice_without_an_alternative_has_no_end_of_margin() -> None:
    scores = torch.tensor([[3.0, 1.0, -math.inf], [2.0, -math.inf, -math.inf]])
    assert margins(scores, 1).tolist() == [2.0, math.inf]
    assert margins(scores, 2).tolist() == [math.inf, math.inf]
    for top_k in (0, 4):
        with pytest.raises(SpecError, match="from 1 to the 3 experts"):
            margins(scores, top_k)
