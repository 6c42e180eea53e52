"""Composed models route each domain to its own expert, by gates fitted on what the router truly sees."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.context import DomainPrior, RoutingContext
from moe_core.model.init import random_decoder
from moe_core.operations import compose
from moe_core.operations.gate_fit import (
    Labelled,
    accuracy,
    fit_rows,
)
from moe_core.operations.passes import listening, loss_by_domain
from moe_core.operations.prompts import Prompts
from moe_core.routers import Routing
from moe_core.spec.operations import ComposeSpec
from tests.moe_core.operations.models import IDS, distance, mixture, some_prompts
from tests.moe_core.tiny import STD, tiny_llama, tiny_mixtral

DOMAINS = ("law", "code")
# One shape, two ways to write it down.
SPELLINGS = ("mixtral", "turnout_moe")


def kin(count: int = 2) -> list[Decoder]:
    """Dense models that share their trunk and differ in their feed-forwards."""
    models = [random_decoder(tiny_llama(), 6, STD) for _ in range(count)]
    with torch.no_grad():
        for place, model in enumerate(models):
            generator = torch.Generator().manual_seed(place)
            for name, weight in model.named_parameters():
                if ".mlp." in name:
                    weight.normal_(0.0, STD, generator=generator)
    return models


def composed(
    models: list[Decoder], prompts: Prompts | None = None, **fields: Any
) -> tuple[Decoder, dict[str, Any]]:
    return compose(
        models, ComposeSpec.parse({"domains": DOMAINS, **fields}), prompts or some_prompts(per_domain=12)
    )


@pytest.mark.parametrize("gate", ["ridge", "logistic", "mean"])
def test_prompts_that_were_held_out_find_their_domain(gate: str) -> None:
    _, report = composed(kin(), some_prompts(per_domain=160, high=25), gate=gate)
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2]
    for layer in report["layers"]:
        assert layer["token_accuracy"] > (0.7 if gate == "mean" else 0.88)
        assert layer["prompt_accuracy"] > (0.8 if gate == "mean" else 0.95)
        assert layer["chance"] == 0.5
    json.dumps(report)


def test_losses_are_of_prompts_that_nothing_was_fitted_on() -> None:
    prompts = some_prompts(per_domain=13)
    model, report = composed(kin(), prompts)
    last = prompts.take([prompts.of_domain(code)[turn] for code in DOMAINS for turn in (3, 7, 11)])
    assert report["loss_after"] == pytest.approx(loss_by_domain(model, last), abs=1e-6)
    assert report["loss_of_each"]["law"] == pytest.approx(loss_by_domain(kin()[0], last), abs=1e-6)
    assert report["loss_after"] != pytest.approx(loss_by_domain(model, prompts), abs=1e-6)


def of_words(domain: int, num_words: int, known: bool) -> list[int]:
    """The words of a domain, 48 each, that prompts are fitted on, or those that they never have."""
    start = 1 + 48 * domain
    return list(range(start, start + num_words)) if known else list(range(start + num_words, start + 48))


def split_by_words(num_words: int = 32) -> Prompts:
    """Every fourth prompt of a domain, which is the one held out, has words that no other prompt has."""
    generator = torch.Generator().manual_seed(4)

    def prompt(domain: int, row: int) -> list[int]:
        words = of_words(domain, num_words, known=row % 4 != 3)
        return [words[int(at)] for at in torch.randint(len(words), (8,), generator=generator)]

    return Prompts.of(
        {code: [prompt(place, row) for row in range(160)] for place, code in enumerate(DOMAINS)}
    )


def with_kin_words(models: list[Decoder], share: float) -> list[Decoder]:
    """Words of one domain have a direction in common, as those of a trained model do."""
    towards = torch.randn(48, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        for model in models:
            std = float(model.embed_tokens.weight.std())
            model.embed_tokens.weight[1:49] += share * std * towards
            model.embed_tokens.weight[49:97] -= share * std * towards
    return models


@pytest.mark.parametrize("gate", ["ridge", "logistic", "mean"])
def test_words_that_no_fitted_prompt_has_find_their_domain_by_what_its_words_have_in_common(
    gate: str,
) -> None:
    prompts = split_by_words()
    _, report = composed(with_kin_words(kin(), 1.0), prompts, gate=gate)
    for layer in report["layers"]:
        # All held-out tokens are new ones here, and are told as such.
        assert layer["new_tokens"] == layer["held_out_tokens"] == 2 * 40 * 8
        assert layer["new_token_accuracy"] == layer["token_accuracy"] > 0.85


def test_a_gate_that_only_learnt_words_by_heart_is_not_told_as_good_on_new_ones() -> None:
    """Nothing in common: held-out prompts of known words look fine, words that were never seen are at chance."""
    _, by_heart = composed(kin(), some_prompts(per_domain=160, high=25))
    _, honest = composed(kin(), split_by_words())
    for known, new in zip(by_heart["layers"], honest["layers"], strict=True):
        assert known["token_accuracy"] > 0.88
        assert known["new_token_accuracy"] is None and known["new_tokens"] == 0
        assert 0.3 < new["new_token_accuracy"] < 0.7


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2])
def test_it_is_told_where_the_temperature_changes_no_output(top_k: int) -> None:
    model, report = composed(kin(), top_k=top_k)
    sharper, _ = composed(kin(), top_k=top_k)
    for layer in sharper.moe_layers():
        layer.router.weight.mul_(7.0)
    assert report["temperature_acts"] is (top_k > 1)
    assert (distance(model, sharper) > 1e-3) is report["temperature_acts"]


@torch.no_grad()
def test_among_the_experts_of_mixtures_and_against_a_bias_the_temperature_always_acts() -> None:
    for moe in ({}, {"num_experts": 1, "gate": {"kind": "softmax_topk", "selection_bias": True}}):
        _, report = composed([mixture(1, top_k=1, **moe), mixture(2, top_k=1, **moe)])
        assert report["temperature_acts"] is True


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("moe", [{}, {"gate": {"kind": "softmax_topk", "logit_bias": True}}])
def test_what_is_told_of_a_layer_is_of_the_gate_that_was_made(
    temperature: float, moe: dict[str, Any]
) -> None:
    """The models' own rows stand in it, and their own temperature divides it."""
    models = [mixture(seed, temperature=temperature, **moe) for seed in (1, 2)]
    prompts = some_prompts(per_domain=16)
    model, report = composed(models, prompts)
    chosen: dict[int, Routing] = {}
    model(prompts.ids_NS, RoutingContext(observe=chosen.__setitem__))
    held_out_T = prompts.real_T & (torch.arange(32) % 4 == 3).repeat_interleave(prompts.ids_NS.shape[1])
    domain_N = prompts.domain_T[held_out_T]
    weight_N = 0.5 / torch.bincount(domain_N).double()[domain_N]
    for told in report["layers"]:
        share_NC = chosen[told["layer"]].probs_TE[held_out_T].double().unflatten(-1, (2, -1)).sum(-1)
        own_N = share_NC.gather(-1, domain_N[:, None])[:, 0]
        assert told["kl"] == pytest.approx(float(-(weight_N * own_N.log()).sum()), rel=1e-4)
        # An expert that is not among the chosen has no weight, whatever its share.
        routing, weight_TE = chosen[told["layer"]], torch.zeros_like(chosen[told["layer"]].probs_TE)
        weight_TE.scatter_(1, routing.expert_ids_TK, routing.weights_TK)
        given_NC = weight_TE[held_out_T].unflatten(-1, (2, -1)).sum(-1)
        right_N = (given_NC.argmax(-1) == domain_N).double()
        assert told["token_accuracy"] == pytest.approx(float((weight_N * right_N).sum()), abs=1e-6)


@torch.no_grad()
def test_a_token_is_as_sure_of_its_model_whatever_temperature_the_models_have() -> None:
    shares = []
    for temperature in (1.0, 4.0):
        models = [mixture(seed, temperature=temperature) for seed in (1, 2)]
        prompts, chosen = some_prompts(per_domain=16), dict[int, Routing]()
        composed(models, prompts)[0](prompts.ids_NS, RoutingContext(observe=chosen.__setitem__))
        share_TC = chosen[0].probs_TE.unflatten(-1, (2, -1)).sum(-1)
        shares.append(float(share_TC.gather(-1, prompts.domain_T[:, None])[:, 0][prompts.real_T].mean()))
    assert shares[1] == pytest.approx(shares[0], abs=0.05)


def test_prompts_whose_domains_were_shuffled_find_nothing() -> None:
    prompts = some_prompts(per_domain=48)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    shuffled = replace(prompts, domain_N=prompts.domain_N[order])
    _, report = composed(kin(), shuffled)
    for layer in report["layers"]:
        assert 0.3 < layer["token_accuracy"] < 0.7


def test_the_same_model_twice_is_that_model() -> None:
    one = random_decoder(tiny_llama(), 6, STD)
    for trunk in ("first", "mean"):
        model, report = composed([one, one], trunk=trunk)
        assert distance(one, model) < 2e-6
        assert report["trunk_distance"] == [0.0, 0.0]


@pytest.mark.parametrize("place", [0, 1])
def test_a_domain_that_is_forced_to_its_expert_has_its_models_function(place: int) -> None:
    models = kin()
    model, _ = composed(models)
    bias_1LE = torch.full((1, 3, 2), float("-inf"))
    bias_1LE[:, :, place] = 0.0
    context = RoutingContext(domain_T=torch.zeros(24, dtype=torch.long), prior=DomainPrior(bias_1LE, 1))
    with torch.no_grad():
        theirs = models[place](IDS)
        assert float((model(IDS, context) - theirs).norm() / theirs.norm()) < 2e-6


def test_layers_that_are_left_out_stay_dense_and_trunks_are_told_apart() -> None:
    models = [random_decoder(tiny_llama(), seed, STD) for seed in (1, 2)]
    model, report = composed(models, moe_layers=(1,), trunk="mean")
    assert [layer["layer"] for layer in report["layers"]] == [1]
    assert report["trunk_distance"][0] == 0.0
    assert report["trunk_distance"][1] > 0.5
    ours, theirs = dict(model.named_parameters()), [dict(m.named_parameters()) for m in models]
    name = "layers.0.mlp.down_proj.weight"
    assert torch.allclose(ours[name], (theirs[0][name] + theirs[1][name]) / 2)


def test_mixtures_keep_their_experts_and_their_own_gates_under_the_domains() -> None:
    models = [mixture(), mixture()]
    with torch.no_grad():
        for layer in models[1].moe_layers():
            layer.experts.down_EDF.normal_(0.0, STD, generator=torch.Generator().manual_seed(9))
            layer.router.weight.normal_(0.0, STD, generator=torch.Generator().manual_seed(8))
    model, _ = composed(models)
    assert model.spec.moe is not None
    assert (model.spec.moe.num_experts, model.spec.moe.top_k) == (8, 2)
    for place, source in enumerate(models):
        own = slice(4 * place, 4 * place + 4)
        for ours, theirs in zip(model.moe_layers(), source.moe_layers(), strict=True):
            assert torch.equal(ours.experts.down_EDF[own], theirs.experts.down_EDF)
            # One row was added to all four: differences within a model are its own.
            added = ours.router.weight[own] - theirs.router.weight
            assert torch.allclose(added, added[:1].expand_as(added), atol=1e-5)
        mask_1LE = torch.full((1, 2, 8), float("-inf"))
        mask_1LE[:, :, own] = 0.0
        context = RoutingContext(domain_T=torch.zeros(24, dtype=torch.long), prior=DomainPrior(mask_1LE, 2))
        with torch.no_grad():
            theirs_BSV = source(IDS)
            assert float((model(IDS, context) - theirs_BSV).norm() / theirs_BSV.norm()) < 1e-5


def test_gates_are_those_of_a_closed_form_on_the_routers_true_inputs() -> None:
    prompts = some_prompts(per_domain=8)
    model, report = composed(kin(), prompts, ridge=0.1)
    seen: list[torch.Tensor] = []
    with torch.no_grad(), listening(model, lambda layer, x_TD: seen.append(x_TD)):
        model(prompts.ids_NS)
    fitted_N = (torch.arange(16) % 8 % 4) < 2
    chosen_T = prompts.real_T & fitted_N.repeat_interleave(prompts.ids_NS.shape[1])
    for x_TD, layer, told in zip(seen, model.moe_layers(), report["layers"], strict=True):
        x, d = x_TD[chosen_T].double().numpy(), prompts.domain_T[chosen_T].numpy()
        weight = np.where(d == 0, 0.5 / (d == 0).sum(), 0.5 / (d == 1).sum())
        moment = (x * weight[:, None]).T @ x
        moment += 0.1 * np.trace(moment) / 48 * np.eye(48)
        target = np.stack([d == 0, d == 1], -1) - 0.5
        rows = np.linalg.solve(moment, (x * weight[:, None]).T @ target).T / told["temperature"]
        assert np.allclose(
            layer.router.weight.detach().numpy(), rows, rtol=1e-3, atol=1e-4 * np.abs(rows).max()
        )


def test_padding_is_never_averaged_in() -> None:
    prompts = some_prompts(per_domain=8)
    longer = torch.nn.functional.pad(prompts.ids_NS, (0, 30), value=5)
    padded = replace(prompts, ids_NS=longer, real_NS=torch.nn.functional.pad(prompts.real_NS, (0, 30)))
    for gate in ("ridge", "mean"):
        plain, wide = composed(kin(), prompts, gate=gate)[0], composed(kin(), padded, gate=gate)[0]
        for one, other in zip(plain.moe_layers(), wide.moe_layers(), strict=True):
            assert torch.allclose(one.router.weight, other.router.weight, rtol=1e-3, atol=1e-5)
    # The same with the padding taken for tokens is another gate.
    wrong = composed(kin(), replace(padded, real_NS=torch.ones_like(padded.real_NS)), gate="mean")[0]
    assert not torch.allclose(
        next(plain.moe_layers()).router.weight, next(wrong.moe_layers()).router.weight, atol=1e-2
    )


def test_calibration_lowers_the_divergence_on_tokens_that_it_did_not_see() -> None:
    _, report = composed(kin(), some_prompts(per_domain=160, high=25))
    for layer in report["layers"]:
        assert layer["kl"] < layer["kl_before"]
        assert layer["kl"] < 0.3


def test_a_large_direction_that_says_nothing_does_not_lead_a_whitened_gate_astray() -> None:
    generator = torch.Generator().manual_seed(2)
    domain_N = torch.arange(400) % 2
    x_ND = torch.randn(400, 16, generator=generator)
    side_N = 2.0 * domain_N - 1.0
    x_ND[:, 0] = 3.0 * side_N + 60.0 * torch.randn(400, generator=generator)
    x_ND[:, 1] += 2.0 * side_N
    seen = Labelled(x_ND, domain_N, torch.arange(400))
    right = {
        kind: accuracy(x_ND.double() @ fit_rows(seen, 2, kind, 1e-3).T, seen)[0]
        for kind in ("ridge", "logistic", "mean")
    }
    assert right["ridge"] > 0.95
    assert right["logistic"] > 0.95
    assert right["mean"] < 0.8


def test_models_may_differ_in_how_a_text_ends_and_how_long_it_may_be() -> None:
    first, second = kin()
    first.spec = tiny_llama(eos_token_ids=(5, 6), bos_token_id=1, max_position_embeddings=200)
    second.spec = tiny_llama(eos_token_ids=(7, 5), bos_token_id=3, max_position_embeddings=64)
    for models, begins, ends in (([first, second], 1, (5, 6, 7)), ([second, first], 3, (7, 5, 6))):
        spec = composed(models)[0].spec
        assert (spec.bos_token_id, spec.eos_token_ids, spec.max_position_embeddings) == (begins, ends, 64)
    with pytest.raises(SpecError, match="64"):
        composed([first, second], Prompts.of(dict.fromkeys(DOMAINS, [[1] * 65] * 4)))


def test_mixtures_of_two_families_are_composed_in_that_of_the_first() -> None:
    spec = tiny_mixtral()
    models = [random_decoder(spec.model_copy(update={"family": family}), 1, STD) for family in SPELLINGS]
    for each in (models, models[::-1]):
        made, _report = composed(each)
        assert made.spec.family == each[0].spec.family
        assert distance(made, composed([models[0]] * 2)[0]) == 0.0


def test_models_that_end_a_text_in_too_many_ways_are_refused() -> None:
    models = kin()
    for place, model in enumerate(models):
        model.spec = tiny_llama(eos_token_ids=tuple(range(10 * place, 10 * place + 10)))
    with pytest.raises(SpecError, match="eos_token_ids"):
        composed(models)
