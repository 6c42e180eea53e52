"""Effects of a hundredth are told from steps that wander by far more, and are not told where they cannot be."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from benchmarks.paired import LEAST_BLOCKS, Block, Effect, effects_of, settings

TRUE = {"one": 0.01, "three": 0.03, "none": 0.0}


def drawn_blocks(num_blocks: int, seed: int, spread: float = 0.04) -> list[Block]:
    """Steps that grow to twice their length, spread by so much, and are interrupted now and then for as long again."""
    chance, blocks = random.Random(seed), list[Block]()
    for number, block in enumerate(itertools.islice(settings(tuple(TRUE), seed), num_blocks)):
        steps = []
        for told in block:
            seconds = 7e-3 * (1.0 + number / num_blocks) * chance.lognormvariate(0.0, spread)
            for name, share in TRUE.items():
                seconds *= 1.0 + share * told[name]
            steps.append((told, seconds * (2.0 if chance.random() < 0.05 else 1.0)))
        blocks.append(steps)
    return blocks


def test_a_block_holds_every_combination_once_in_an_order_of_its_own() -> None:
    blocks = list(itertools.islice(settings(("a", "b", "c"), 3), 12))
    every = sorted(itertools.product((False, True), repeat=3))
    orders = [[tuple(told.values()) for told in block] for block in blocks]
    assert all(sorted(order) == every for order in orders)
    assert len({tuple(order) for order in orders}) > 8
    assert orders == [
        [tuple(told.values()) for told in block]
        for block in itertools.islice(settings(("a", "b", "c"), 3), 12)
    ]


def test_a_hundredth_is_told_beneath_noise_growth_and_interruptions() -> None:
    for name, effect in effects_of(drawn_blocks(600, seed=1)).items():
        assert effect.share == pytest.approx(TRUE[name], abs=0.004), name
        assert effect.low < TRUE[name] < effect.high
        assert effect.width < 0.01
        assert "not known" not in effect.told(0.01)


@pytest.mark.parametrize("spread", [0.003, 0.01, 0.04])
def test_intervals_hold_what_is_true_as_often_as_they_say(spread: float) -> None:
    """Of each switch: one with an effect is not pulled towards those without."""
    every = [effects_of(drawn_blocks(60, seed, spread)) for seed in range(60)]
    for name, true in TRUE.items():
        held = sum(found[name].low <= true <= found[name].high for found in every) / len(every)
        assert held > 0.84, name
        middle = statistics.fmean(found[name].share for found in every)
        assert middle == pytest.approx(true, abs=0.0001 + 0.05 * spread), name


def test_what_is_wider_than_the_claim_is_not_told() -> None:
    few, noisy = effects_of(drawn_blocks(600, 2, spread=0.3))["one"], Effect(0.004, -0.02, 0.03, 500)
    for wide in (few, noisy):
        assert wide.told(0.01).startswith("not known")
    assert noisy.told(0.05) == "+0.40% (-2.00% to +3.00%)"
    assert Effect(0.004, 0.003, 0.005, LEAST_BLOCKS - 1).told(0.01).startswith("not known")
    assert Effect(float("nan"), float("nan"), float("nan"), 500).told(0.01).startswith("not known")
    assert effects_of([]) == {}
