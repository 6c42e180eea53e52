"""The temperature of a composed gate: found where tokens tell it, and within what they tell where they are few."""

from __future__ import annotations

import json
import math

import pytest
import torch

from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations import compose
from moe_core.operations.compose_gates import Made, settled_temperature
from moe_core.operations.gate_fit import (
    Labelled,
    calibrated_temperature,
    cautious_temperature,
    divergence,
    fit_rows,
    temperature_of_chance,
)
from moe_core.spec.operations import ComposeSpec
from tests.moe_core.operations.models import mixture_spec, some_prompts
from tests.moe_core.tiny import STD, tiny_llama


def labelled(num_tokens: int, sharpness: float, seed: int) -> tuple[Labelled, torch.Tensor]:
    """Tokens whose domains were drawn from a gate of known rows and sharpness."""
    generator = torch.Generator().manual_seed(seed)
    rows_CD = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    x_ND = torch.randn(num_tokens, 6, generator=generator, dtype=torch.float64)
    probs = torch.softmax(sharpness * x_ND @ rows_CD.T, -1)
    domain_N = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return Labelled(x_ND, domain_N, torch.arange(num_tokens)), rows_CD


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(sharpness: float) -> None:
    seen, rows_CD = labelled(20_000, sharpness, 1)
    logits_NC = seen.x_ND @ rows_CD.T

    def cost(sharpness: float) -> float:
        return divergence(sharpness * logits_NC, seen)

    for found in (calibrated_temperature(cost), cautious_temperature(cost, slack=0.0)):
        assert found == pytest.approx(1.0 / sharpness, rel=0.08)
        at_best = divergence(logits_NC / found, seen)
        assert at_best <= min(divergence(logits_NC / t, seen) for t in (found * 0.9, found * 1.1))


def test_a_domain_with_many_tokens_has_no_more_weight() -> None:
    seen, _ = labelled(600, 1.0, 3)
    twice = torch.cat([torch.arange(600), *[torch.nonzero(seen.domain_N == 1)[:, 0]] * 3])
    more = Labelled(seen.x_ND[twice], seen.domain_N[twice], seen.prompt_N[twice])
    assert torch.allclose(fit_rows(seen, 3, "ridge", 0.01), fit_rows(more, 3, "ridge", 0.01))


def made(seen: Labelled, logits_NC: torch.Tensor) -> Made:
    """Tokens before a gate of one expert a domain, with what its rows say of them."""
    num_domains = logits_NC.shape[1]
    moe = mixture_spec(num_experts=num_domains, top_k=2).moe
    assert moe is not None
    labels_NC = torch.nn.functional.one_hot(seen.domain_N, num_domains).double()
    return Made(seen, moe, {}, torch.zeros_like(logits_NC), logits_NC, labels_NC)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0])
def test_many_tokens_settle_what_their_labels_were_drawn_with(sharpness: float) -> None:
    seen, rows_CD = labelled(20_000, sharpness, 1)
    temperature, beats_chance = settled_temperature(made(seen, seen.x_ND @ rows_CD.T))
    assert beats_chance and temperature == pytest.approx(1.0 / sharpness, rel=0.08)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [0.5, 3.0])
def test_tokens_that_say_nothing_make_a_gate_even_and_no_more(seed: int, size: float) -> None:
    """What rows say has nothing to do with the domain, or says the opposite of it."""
    generator = torch.Generator().manual_seed(seed)
    domain_N = torch.arange(40) % 2
    logits_NC = size * torch.randn(40, 2, generator=generator, dtype=torch.float64)
    if seed % 2:
        logits_NC[torch.arange(40), domain_N] -= size
    # Five tokens a prompt, each prompt of one domain.
    seen = Labelled(torch.zeros(40, 1), domain_N, domain_N + 2 * (torch.arange(40) // 10))
    tuned = made(seen, logits_NC)
    temperature, beats_chance = settled_temperature(tuned)
    assert 1.0 <= temperature < 1e3
    if seed % 2:
        assert not beats_chance and calibrated_temperature(tuned.cost) > 1e5
    if not beats_chance:
        assert tuned.cost(1.0 / temperature) < math.log(2.0) + 0.011


def test_a_few_tokens_that_are_all_right_do_not_make_a_gate_sure() -> None:
    domain_N = torch.arange(12) % 2
    logits_NC = torch.nn.functional.one_hot(domain_N, 2).double() * torch.linspace(0.2, 1.0, 12)[:, None]
    few = Labelled(torch.zeros(12, 1), domain_N, torch.arange(12))
    temperature, beats_chance = settled_temperature(made(few, logits_NC))
    assert beats_chance
    # Six tokens a domain are right seven times in eight.
    mean = torch.softmax(logits_NC / temperature, -1)[torch.arange(12), domain_N].mean()
    assert 0.8 < float(mean) < 0.93
    assert calibrated_temperature(lambda sharpness: divergence(sharpness * logits_NC, few)) < 1e-2


def test_what_is_hardly_worse_than_even_is_left_as_it_is() -> None:
    assert temperature_of_chance(lambda sharpness: 0.7 + 0.009 * sharpness) == 1.0
    assert temperature_of_chance(lambda sharpness: 0.7 + sharpness) == pytest.approx(100.0, rel=1e-3)


def test_a_standard_error_is_of_prompts_where_their_tokens_are_alike() -> None:
    figure_N = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    domain_N = torch.tensor([0, 0, 1, 0, 1, 1])
    alone = Labelled(torch.zeros(6, 1), domain_N, torch.arange(6))
    together = Labelled(torch.zeros(6, 1), domain_N, torch.tensor([0, 0, 1, 2, 3, 3]))
    by_hand = [1.0 / 6.0 * (1.0 - 0.0)] * 6
    assert alone.standard_error(figure_N, 2) == pytest.approx(math.sqrt(sum(one**2 for one in by_hand)))
    assert together.standard_error(figure_N, 2) == pytest.approx(math.sqrt(2 * (2 / 6) ** 2 + 2 / 36))


def dense(seed: int) -> Decoder:
    """One trunk for all, feed-forwards of their own."""
    model = random_decoder(tiny_llama(), 1, STD)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".mlp." in name:
                weight.normal_(0.0, STD, generator=generator)
    return model


@pytest.mark.parametrize("gate", ["ridge", "logistic", "mean"])
@pytest.mark.parametrize("per_domain", [4, 8])
def test_composing_with_few_prompts_keeps_the_temperature_in_bounds(gate: str, per_domain: int) -> None:
    for seed in range(3):
        spec = ComposeSpec.parse({"domains": ("law", "code"), "gate": gate, "top_k": 2})
        _, report = compose([dense(11 + seed), dense(50 + seed)], spec, some_prompts(100 + seed, per_domain))
        json.dumps(report)
        for layer in report["layers"]:
            assert 1e-2 < layer["temperature"] < 1e3
            # Even is 0.69; without bounds one of these is above 400.
            assert layer["kl"] < 2.0
            assert layer["beats_chance"] or layer["temperature"] >= 1.0
