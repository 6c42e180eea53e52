"""The sampler follows the distribution that it was given, and nothing but the seed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.sampler import draw, sample, uniform
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.sequence import Sequence
from tests.moe_core.engine.conftest import PlainStream

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 2.0])
PLAIN = SamplingParams(max_tokens=8, temperature=1.0)


def sequence_with(params: SamplingParams) -> Sequence:
    return Sequence(1, "", [0], 1, params, Detokenizer(PlainStream()))


def shares(params: SamplingParams, number: int = 4000) -> dict[int, float]:
    drawn = Counter(draw(LOGITS, params, uniform(9, position)) for position in range(number))
    return {token: count / number for token, count in drawn.items()}


def test_temperature_zero_is_the_first_of_the_best() -> None:
    [chosen] = sample(LOGITS[None], [sequence_with(replace(PLAIN, temperature=0.0))])
    assert chosen.token_id == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_shares_follow_the_softmax(temperature: float) -> None:
    wanted = torch.softmax(LOGITS / temperature, -1).tolist()
    found = shares(replace(PLAIN, temperature=temperature))
    for token, share in enumerate(wanted):
        # Four standard deviations of a share of 4,000 draws.
        assert found.get(token, 0.0) == pytest.approx(share, abs=4 * math.sqrt(share / 4000) + 1e-9)


def test_top_k_keeps_the_k_likeliest_in_proportion() -> None:
    found = shares(replace(PLAIN, top_k=3))
    assert set(found) == {1, 2, 4}
    assert found[1] / found[2] == pytest.approx(math.e, rel=0.15)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    # The shares are 0.39, 0.39, 0.14, 0.05, 0.02.
    assert set(shares(replace(PLAIN, top_p=0.7))) == {1, 4}
    assert set(shares(replace(PLAIN, top_p=0.8))) == {1, 4, 2}
    assert len(shares(replace(PLAIN, top_p=0.0))) == 1


@pytest.mark.parametrize("num_tokens", [5_000, 20_000])
def test_top_p_over_a_nearly_flat_vocabulary_keeps_its_likelier_part(num_tokens: int) -> None:
    flat = -1e-6 * torch.arange(num_tokens)
    tokens = {draw(flat, replace(PLAIN, top_p=0.9), uniform(1, position)) for position in range(3000)}
    assert len(tokens) > 2000
    assert max(tokens) < 0.9 * num_tokens


def test_a_row_does_not_depend_on_its_company_or_place() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    rows = [sequence_with(replace(PLAIN, seed=seed, top_p=0.95)) for seed in range(6)]
    together = [one.token_id for one in sample(logits, rows)]
    alone = [sample(logits[row : row + 1], [rows[row]])[0].token_id for row in range(6)]
    reversed_rows = [one.token_id for one in sample(logits.flip(0), rows[::-1])]
    assert together == alone == reversed_rows[::-1]


def test_logprobs_are_those_of_the_raw_logits() -> None:
    params = replace(PLAIN, temperature=0.3, top_k=1, num_logprobs=2)
    [chosen] = sample(LOGITS[None], [sequence_with(params)])
    wanted = torch.log_softmax(LOGITS, -1)
    assert chosen.logprob.logprob == pytest.approx(float(wanted[chosen.token_id]))
    assert [value for _, value in chosen.logprob.top] == pytest.approx(sorted(wanted.tolist())[-1:-3:-1])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_has_no_token(poison: float) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[1, 3] = poison
    good, bad = sample(logits, [sequence_with(PLAIN), sequence_with(PLAIN)])
    assert good.token_id is not None
    assert bad.token_id is None


def test_uniform_numbers_spread_over_the_unit_interval() -> None:
    numbers = [uniform(seed, position) for seed in (-(1 << 63), 0, (1 << 63) - 1) for position in range(1000)]
    assert 0.0 <= min(numbers) < 0.01 < 0.99 < max(numbers) < 1.0
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.03)


def plainly(logits: torch.Tensor, params: SamplingParams, drawn: float) -> list[int]:
    """The tokens that may be drawn at a quantile, by sorting and adding up everything in double precision.

    More than one where rounding to single precision may decide between neighbours.
    """
    scores = logits.double() / params.temperature
    if params.min_p:
        scores[scores < scores.max() + math.log(params.min_p)] = -math.inf
    order = scores.sort(descending=True, stable=True).indices
    if params.top_k:
        order = order[: params.top_k]
    probs = torch.softmax(scores[order], -1)
    kept = probs.cumsum(0) - probs < params.top_p
    kept[0] = True
    order, probs = order[kept], probs[kept] / probs[kept].sum()
    if params.top_k == 0 and params.top_p >= 1.0:
        # Without a filter that sorts, the tokens stand in the order of the vocabulary.
        order, places = order.sort()
        probs = probs[places]
    mass = probs.cumsum(0)
    near = [
        int(torch.searchsorted(mass, min(max(drawn + d, 0.0), 1.0 - 1e-9), right=True))
        for d in (-1e-5, 0.0, 1e-5)
    ]
    return [int(order[min(place, len(order) - 1)]) for place in near]


@pytest.mark.parametrize("size", [3, 97, 512, 513, 1000, 4096, 49_152])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_p": 0.9},
        {"top_p": 0.5, "min_p": 0.01},
        {"top_k": 40},
        {"top_k": 40, "top_p": 0.7},
        {"min_p": 0.05},
        {"top_p": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("sharpness", [0.1, 3.0])
def test_it_draws_what_sorting_everything_would(
    size: int, filters: dict[str, float], sharpness: float
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * sharpness
    params = SamplingParams(max_tokens=1, temperature=0.8, **filters)
    for position in range(40):
        drawn = uniform(3, position)
        assert draw(logits, params, drawn) in plainly(logits, params, drawn)


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0 - 2**-53])
@pytest.mark.parametrize("size", [600, 1024, 1030])
def test_a_token_without_probability_is_never_drawn(size: int, drawn: float) -> None:
    logits = torch.full((size,), -math.inf)
    logits[[300, 515]] = 0.0
    assert draw(logits, replace(PLAIN, temperature=1.0), drawn) == (300 if drawn < 0.5 else 515)
    for filters in ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.5}):
        assert draw(logits, replace(PLAIN, temperature=1.0, **filters), drawn) in (300, 515)
