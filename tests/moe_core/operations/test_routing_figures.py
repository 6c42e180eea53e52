"""The figures of a run, layer by layer, against numbers worked out by hand and against the choices themselves."""

from __future__ import annotations

import json
import math

import pytest
import torch

from moe_core.model.context import RoutingContext
from moe_core.operations import quantise
from moe_core.operations.metrics import agreement
from moe_core.operations.routing_figures import RoutingFigures, comparable, routing_figures
from moe_core.routers import Routing
from moe_core.routers.routing import Overflow
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.operations.models import mixture, some_prompts


def routing(ids: list[list[int]], logits: list[list[float]], overflow: Overflow | None = None) -> Routing:
    ids_TK, logits_TE = torch.tensor(ids), torch.tensor(logits)
    weights_TK = (ids_TK >= 0).float()
    return Routing(ids_TK, weights_TK, logits_TE, torch.softmax(logits_TE, -1), overflow=overflow)


def test_every_figure_of_two_batches_by_hand() -> None:
    figures = RoutingFigures(mixture(num_experts=3, top_k=2).spec.moe, 2)  # type: ignore[arg-type]
    wanted_TK = torch.tensor([[0, 1], [2, 1], [0, 1]])
    dropped_TK = torch.tensor([[False, True], [False, False], [True, True]])
    lost = Overflow(~dropped_TK, torch.zeros_like(dropped_TK), dropped_TK, wanted_TK, torch.ones(3, 2))
    # Token 0 of the first batch lost its second expert; the third token is padding.
    first = routing([[0, -1], [2, 1], [0, 0]], [[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [9.0, 9.0, 9.0]], lost)
    second = routing([[0, 2]], [[1.0, 0.0, 0.5]])
    real_T, tokens = torch.tensor([True, True, False]), torch.tensor([7, 4, 7])
    for layer in (2, 5):
        figures.add(layer, first, real_T, tokens, torch.tensor([0, 1, 0]))
        figures.add(layer, second, torch.tensor([True]), torch.tensor([7]), torch.tensor([-1]))
    before = {2: torch.tensor([[0, 1], [2, 1], [2, 0]]), 5: torch.tensor([[1, 1], [0, -1], [1, -1]])}
    report = figures.report(before)
    two, five = report["layers"]
    assert (two["layer"], five["layer"]) == (2, 5)
    # Loads 2, 1, 2 over both batches; 1, 1, 1 and then 1, 0, 1 by batch.
    assert two["max_vio"] == pytest.approx(2 / (5 / 3) - 1)
    assert two["max_vio_batch"] == pytest.approx((0.0 + 0.5) / 2)
    assert two["variation"] == pytest.approx(math.sqrt(2 / 9) / (5 / 3))
    assert two["gini"] == pytest.approx(2 / 15)
    assert two["dead_experts"] == 0
    # One of four choices of the batch that had room to say so.
    assert two["drop_rate"] == pytest.approx(0.25)
    # Second-best over third: 1, 1 and 0.5.
    assert two["margin"] == pytest.approx(1.0)
    lse = [math.log(sum(map(math.exp, row))) ** 2 for row in ([2, 1, 0], [0, 1, 3], [1, 0, 0.5])]
    assert two["router_z"] == pytest.approx(sum(lse) / 3, rel=1e-6)
    # Expert 1 was chosen once, with 2.
    assert two["coactivation"] == 1.0
    # Domain 0 chose expert 0 alone, domain 1 two experts once each; the token of no domain does not count.
    assert two["domain_specialisation"] == pytest.approx(0.75)
    # Token 7 came twice and both went to expert 0; token 4 once.
    assert two["vocabulary_specialisation"] == pytest.approx(1.0)
    # {0} of {0, 1}, both, both.
    assert two["agreement"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert two["saturation"] == pytest.approx(1.0)
    assert five["agreement"] == five["saturation"] == 0.0
    assert report["mean"]["agreement"] == pytest.approx(two["agreement"] / 2)
    assert "layer" not in report["mean"]
    json.dumps(report, allow_nan=False)


def test_a_domain_without_tokens_does_not_count_for_specialisation() -> None:
    """Of four domains two have tokens: one sends all to an expert, the other half to each of two."""
    figures = RoutingFigures(mixture(num_experts=3, top_k=1).spec.moe, 4)  # type: ignore[arg-type]
    found = routing([[0], [0], [1], [2]], [[1.0, 0.0, 0.0]] * 4)
    real_T = torch.ones(4, dtype=torch.bool)
    figures.add(2, found, real_T, torch.arange(4), torch.tensor([1, 1, 3, 3]))
    assert figures.report()["layers"][0]["domain_specialisation"] == pytest.approx((1.0 + 0.5) / 2)
    nobodys = RoutingFigures(mixture(num_experts=3, top_k=1).spec.moe, 4)  # type: ignore[arg-type]
    nobodys.add(2, found, real_T, torch.arange(4), torch.full((4,), -1))
    assert nobodys.report()["layers"][0]["domain_specialisation"] is None


def test_a_model_agrees_with_itself_and_less_with_its_packed_self() -> None:
    model, prompts = mixture(top_k=2), some_prompts(per_domain=6)
    packed, _ = quantise(model, QuantiseSpec())
    plain = routing_figures(model, prompts)
    assert plain.report(plain.choices())["mean"]["agreement"] == 1.0
    ours = routing_figures(packed, prompts)
    for row in ours.report(plain.choices())["layers"]:
        layer = row["layer"]
        assert row["agreement"] == agreement(plain.choices()[layer], ours.choices()[layer])
    assert comparable(model.spec.moe, packed.spec.moe) and not comparable(
        model.spec.moe, mixture(num_experts=5).spec.moe
    )


def test_no_padding_is_counted() -> None:
    model, prompts = mixture(), some_prompts()
    report = routing_figures(model, prompts)
    seen: dict[int, Routing] = {}
    with torch.no_grad():
        model(prompts.ids_NS, RoutingContext(observe=seen.__setitem__))
    for layer, choices_TK in report.choices().items():
        assert torch.equal(choices_TK, seen[layer].expert_ids_TK[prompts.real_T])
