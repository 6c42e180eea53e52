"""Figures of a load, against what they mean and against the training side's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import balance, latency
from telemetry.cube import Cube, Shape, shape_of, unpack

SHAPE = Shape(("", "support"), (2, 5), 4)


def cube_of(load_LE: list[list[int]]) -> Cube:
    cube = Cube.empty(SHAPE)
    cube.counts_PNLE[1, 1] = load_LE
    return cube


def test_an_even_load_has_no_violation_and_full_entropy():
    load = np.full((2, 4), 7)
    assert balance.max_violation(load) == 0.0
    assert balance.entropy(load) == pytest.approx(1.0)


def test_one_expert_that_carries_everything_violates_by_the_number_of_the_others():
    load = np.array([[8, 0, 0, 0]])
    assert balance.max_violation(load) == 3.0
    assert balance.entropy(load) == 0.0


def test_layers_without_tokens_are_left_out():
    assert balance.max_violation(np.array([[4, 4, 4, 4], [0, 0, 0, 0]])) == 0.0
    assert balance.max_violation(np.zeros((2, 4), dtype=int)) is None


def test_the_figures_are_those_of_the_training_side():
    torch = pytest.importorskip("torch")
    from moe_core.operations.metrics import load_entropy, max_violation

    load = np.random.default_rng(3).integers(0, 90, (6, 8))
    assert balance.max_violation(load) == pytest.approx(max_violation(torch.tensor(load)))
    assert balance.entropy(load) == pytest.approx(load_entropy(torch.tensor(load)))


def test_hot_and_sleeping_experts_are_named_by_the_models_layer():
    cube = cube_of([[10, 10, 10, 10], [0, 30, 5, 5]])
    assert balance.hottest(cube, cube.load_LE()) == balance.Cell(5, 1, 3.0)
    assert balance.asleep(cube, cube.load_LE()) == [balance.Cell(5, 0, 0.0)]
    assert balance.summary(cube)["domain_shares"] == {"support": [0.125, 0.5, 0.1875, 0.1875]}


def test_a_cube_survives_its_column():
    cube = cube_of([[1, 2, 3, 4], [5, 6, 7, 2**40]])
    assert (unpack(SHAPE, cube.pack()).counts_PNLE == cube.counts_PNLE).all()
    with pytest.raises(ValueError, match="bytes came out"):
        unpack(Shape(("",), (1,), 4), cube.pack())
    with pytest.raises(ValueError, match="cells are more"):
        shape_of({"layers": list(range(512)), "num_experts": 1024, "domains": [""] * 256})


def test_phases_and_domains_can_be_cut_out():
    cube = Cube.empty(SHAPE)
    cube.counts_PNLE[0, 0], cube.counts_PNLE[1, 1] = 1, 5
    assert cube.load_LE("prefill").sum() == 8
    assert cube.load_LE("decode", "support").sum() == 40
    assert cube.load_LE("decode", "").sum() == 0
    assert cube.load_LE("", "nobody").sum() == 0


@given(st.lists(st.floats(0.01, 100_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_within_a_bucket_of_the_true_one(values, share):
    histogram = latency.empty()
    latency.add(histogram, values)
    found = latency.percentile(histogram, share)
    true = float(np.quantile(values, share, method="inverted_cdf"))
    low, high = true / latency.GROWTH - latency.FIRST_MS, true * latency.GROWTH + latency.FIRST_MS
    assert low - 0.01 <= found <= high + 0.01


def test_histograms_add_up_where_percentiles_do_not():
    one, other = latency.empty(), latency.empty()
    latency.add(one, [10.0] * 95)
    latency.add(other, [1000.0] * 5)
    assert latency.percentile(one + other, 0.5) == pytest.approx(10, rel=0.2)
    assert latency.percentile(one + other, 0.99) == pytest.approx(1000, rel=0.2)
    assert latency.percentile(latency.empty(), 0.5) is None
    assert (latency.unpack(latency.pack(one)) == one).all()


def test_the_share_to_own_experts_is_hits_over_visits_of_named_domains() -> None:
    cube = Cube.empty(Shape(("", "support", "copy", "law"), (2, 5), 4))
    cube.reach_PN2[:, 0] = (50, 0)
    cube.reach_PN2[0, 1], cube.reach_PN2[1, 1] = (8, 6), (12, 4)
    cube.reach_PN2[1, 2] = (20, 20)
    assert balance.mapped_share_by_domain(cube) == {"support": 0.5, "copy": 1.0}
    assert balance.mapped_share(cube) == pytest.approx(30 / 40)
    assert balance.mapped_share(cube, ("law",)) is None
    assert balance.mapped_share(Cube.empty()) is None


def test_visits_and_hits_add_up_subtract_and_survive_their_column() -> None:
    one, other = Cube.empty(SHAPE), Cube.empty(Shape(("", "law", "support"), SHAPE.layers, SHAPE.num_experts))
    one.reach_PN2[0, 1], other.reach_PN2[0, 2], other.reach_PN2[1, 1] = (4, 3), (6, 1), (2, 2)
    both = one.plus(other)
    assert both.shape.domains == ("", "support", "law")
    assert both.reach_PN2[0].tolist() == [[0, 0], [10, 4], [0, 0]]
    assert both.reach_PN2[1].tolist() == [[0, 0], [0, 0], [2, 2]]
    assert (both.minus(both).reach_PN2 == 0).all()
    again = unpack(both.shape, both.pack(), both.pack_reach())
    assert (again.reach_PN2 == both.reach_PN2).all()
    assert not unpack(both.shape, both.pack()).reach_PN2.any(), "rows from before it was counted have none"
