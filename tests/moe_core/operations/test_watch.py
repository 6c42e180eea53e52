"""Every operation tells how far it is, part by part, and whoever watches may end it between two pieces of work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_core.errors import Cancelled
from moe_core.model.init import random_decoder
from moe_core.operations import distil, merge_experts, quantise, remove_expert, specialise_clone, upcycle
from moe_core.operations.passes import compare, hidden_of, loads, log_probs, loss_by_domain, stretches
from moe_core.operations.prompts import Prompts
from moe_core.spec.operations import (
    DistilSpec,
    MergeExpertsSpec,
    QuantiseSpec,
    RemoveExpertSpec,
    SpecialiseCloneSpec,
    UpcycleSpec,
)
from tests.moe_core.operations.models import mixture, some_prompts
from tests.moe_core.tiny import STD, tiny_llama

Told = list[tuple[str, int, int]]


def watched(act: Any) -> Told:
    told: Told = []
    act(lambda *one: told.append(one))
    return told


@pytest.mark.parametrize(
    ("act", "parts"),
    [
        (lambda w: remove_expert(mixture(), RemoveExpertSpec(), some_prompts(), w), ["load", "measure"]),
        (lambda w: remove_expert(mixture(), RemoveExpertSpec(expert=1), some_prompts(), w), ["measure"]),
        (
            lambda w: merge_experts(mixture(), MergeExpertsSpec(first=0, second=1), some_prompts(), w),
            ["load", "inputs", "align", "measure"],
        ),
        (
            lambda w: specialise_clone(
                mixture(), SpecialiseCloneSpec(domain="law", steps=2), some_prompts(), watch=w
            ),
            ["learn", "measure"],
        ),
        (
            lambda w: distil(mixture(), DistilSpec(num_experts=2, steps=2), some_prompts(), watch=w),
            ["inputs", "load", "align", "measure", "learn"],
        ),
        (
            lambda w: quantise(mixture(), QuantiseSpec.parse({"quantisation": {"group_size": 32}}), watch=w),
            ["pack"],
        ),
    ],
)
def test_each_part_is_told_and_ends_at_its_end(act: Any, parts: list[str]) -> None:
    told = watched(act)
    assert list(dict.fromkeys(part for part, _done, _of in told)) == parts
    for part in parts:
        counts = [(done, of) for name, done, of in told if name == part]
        assert counts[-1][0] == counts[-1][1] > 0
        assert all(0 < done <= of for done, of in counts)


def test_laying_experts_is_told_layer_by_layer() -> None:
    spec = UpcycleSpec.model_validate({"layout": {"moe_layers": [0, 2], "num_experts": 4, "top_k": 2}})
    assert watched(lambda w: upcycle(random_decoder(tiny_llama(), 1, STD), spec, w)) == [
        ("lay", 1, 2),
        ("lay", 2, 2),
    ]


def test_prompts_are_told_as_batches_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.operations.prompts.BATCH_TOKENS", 20)
    prompts = some_prompts(per_domain=5)
    told = watched(lambda w: loads(mixture(), prompts, w))
    assert len(told) > 2
    assert [done for _part, done, _of in told] == sorted(done for _part, done, _of in told)


def test_a_watcher_that_raises_ends_the_operation() -> None:
    def stop(part: str, done: int, of: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        remove_expert(mixture(), RemoveExpertSpec(), some_prompts(), stop)


@torch.no_grad()
def test_a_removal_needs_three_passes_and_no_logits_for_the_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = mixture(), some_prompts()
    passes, heads = [0], [0]
    hidden, logits = type(model).hidden, type(model).logits

    def count_hidden(self: Any, *args: Any) -> Any:
        passes[0] += 1
        return hidden(self, *args)

    def count_logits(self: Any, hidden_TD: torch.Tensor) -> Any:
        heads[0] += hidden_TD.shape[0]
        return logits(self, hidden_TD)

    monkeypatch.setattr(type(model), "hidden", count_hidden)
    monkeypatch.setattr(type(model), "logits", count_logits)
    remove_expert(model, RemoveExpertSpec(), prompts)
    assert passes[0] == 3
    # Of every real token once for each of the two models, and of no padding.
    assert heads[0] == 2 * int(prompts.real_NS.sum())


@torch.no_grad()
def test_figures_do_not_hang_on_batches_padding_or_how_many_logits_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after, prompts = mixture(), mixture(seed=6), some_prompts()
    whole = compare(before, after, prompts)
    logits_NSV = torch.log_softmax(before(prompts.ids_NS).float(), -1)
    target_NS, real_NS = prompts.ids_NS[:, 1:], prompts.real_NS[:, 1:]
    losses_NS = -logits_NSV[:, :-1].gather(-1, target_NS[..., None])[..., 0]
    for place, code in enumerate(prompts.codes):
        mine_NS = real_NS & (prompts.domain_N == place)[:, None]
        assert whole["loss_before"][code] == pytest.approx(
            float(losses_NS[mine_NS].double().mean()), abs=1e-5
        )
    monkeypatch.setattr("moe_core.operations.prompts.BATCH_TOKENS", 16)
    monkeypatch.setattr("moe_core.operations.passes.HEAD_TOKENS", 3)
    pieces = compare(before, after, prompts)
    for name, table in whole.items():
        assert pieces[name] == pytest.approx(table, abs=1e-5)
    assert loss_by_domain(after, prompts) == pytest.approx(whole["loss_after"], abs=1e-5)


@torch.no_grad()
def test_the_last_token_of_a_prompt_has_a_divergence_but_no_loss() -> None:
    prompts = Prompts.of({"law": [[1, 2, 3]], "code": [[4, 5]]})
    (part,) = stretches(prompts)
    assert part.next_C.tolist() == [2, 3, -1, 5, -1]
    model = mixture()
    losses, domains = part.losses(log_probs(model, hidden_of(model, prompts)[part.at_C]))
    assert (losses.shape, domains.tolist()) == (torch.Size([3]), [0, 0, 1])
