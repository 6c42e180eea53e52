"""A model measured as it is, against loops over single prompts and tokens that know nothing of batches or padding."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch

from moe_core.errors import Cancelled, SpecError
from moe_core.model.context import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations import Prompts, measure_model, quantise
from moe_core.operations.measure import MAX_COUNTS
from moe_core.operations.routing_figures import routing_figures
from moe_core.routers import Routing
from moe_core.spec import ModelSpec
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.operations.models import mixture
from tests.moe_core.tiny import STD, tiny_llama

# Of very different lengths, so that padding would show.
BY_DOMAIN = {
    "law": [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14]],
    "sums": [[20, 21, 22], [23, 24, 25, 26, 27], [28, 29]],
}


@torch.no_grad()
def losses_by_loop(model: Decoder) -> dict[str, float]:
    """Each prompt alone, each token after the first."""
    found = {}
    for code, prompts in BY_DOMAIN.items():
        losses = []
        for ids in prompts:
            log_probs_SV = torch.log_softmax(model(torch.tensor([ids]))[0].float(), -1)
            losses += [-float(log_probs_SV[at - 1, ids[at]]) for at in range(1, len(ids))]
        found[code] = sum(losses) / len(losses)
    return found


@torch.no_grad()
def loads_by_loop(model: Decoder) -> dict[tuple[int, str], Counter[int]]:
    """Each prompt alone; what its tokens chose, layer by layer."""
    found: dict[tuple[int, str], Counter[int]] = {}
    for code, prompts in BY_DOMAIN.items():
        for ids in prompts:

            def note(layer: int, routing: Routing, code: str = code) -> None:
                chosen = [expert for row in routing.expert_ids_TK.tolist() for expert in row if expert >= 0]
                found.setdefault((layer, code), Counter()).update(chosen)

            model(torch.tensor([ids]), RoutingContext(observe=note))
    return found


def test_losses_loads_and_leaders_are_those_of_a_loop() -> None:
    model = mixture()
    report = measure_model(model, Prompts.of(BY_DOMAIN))
    assert report["tokens"] == {"law": 10, "sums": 10}
    for code, loss in losses_by_loop(model).items():
        assert report["loss"][code] == pytest.approx(loss, rel=1e-5)
    assert model.spec.moe is not None
    loads = loads_by_loop(model)
    assert [row["layer"] for row in report["load"]] == list(model.spec.moe.moe_layers)
    for row, leading in zip(report["load"], report["leading"], strict=True):
        for code in BY_DOMAIN:
            counted = loads[row["layer"], code]
            assert row["by_domain"][code] == [counted[e] for e in range(model.spec.moe.num_experts)]
            best = max(counted, key=lambda e: (counted[e], -e))
            assert leading["by_domain"][code]["expert"] == best
            assert leading["by_domain"][code]["share"] == pytest.approx(counted[best] / sum(counted.values()))
    assert report["routing"] == routing_figures(model, Prompts.of(BY_DOMAIN)).report()
    assert "routing_before" not in report and "agreement" not in report["routing"]["mean"]
    json.dumps(report, allow_nan=False)


def test_beside_another_both_columns_are_what_each_has_alone() -> None:
    prompts = Prompts.of(BY_DOMAIN)
    model = mixture()
    packed, _ = quantise(model, QuantiseSpec.parse({"quantisation": {"bits": 4, "group_size": 32}}))
    assert isinstance(packed, Decoder)
    alone, other = measure_model(packed, prompts), measure_model(model, prompts)
    report = measure_model(packed, prompts, beside=model)
    for code in BY_DOMAIN:
        assert report["loss_after"][code] == report["loss"][code]
        assert report["loss"][code] == pytest.approx(alone["loss"][code], rel=1e-6)
        assert report["loss_before"][code] == pytest.approx(other["loss"][code], rel=1e-6)
        assert report["kl"][code] > 0
    assert report["routing_before"] == other["routing"]
    assert report["load"] == alone["load"] and report["load"] != other["load"]
    assert 0 < report["routing"]["mean"]["agreement"] < 1


def test_a_model_beside_itself_differs_in_nothing() -> None:
    model = mixture()
    report = measure_model(model, Prompts.of(BY_DOMAIN), beside=model)
    assert set(report["loss_change"].values()) == {0.0} == set(report["kl"].values())
    assert report["routing"]["mean"]["agreement"] == report["routing"]["mean"]["saturation"] == 1.0


def test_a_dense_model_has_losses_and_no_routing() -> None:
    model = random_decoder(tiny_llama(), 2, STD)
    report = measure_model(model, Prompts.of(BY_DOMAIN))
    assert set(report) == {"kind", "tokens", "loss"}
    assert report["loss"] == pytest.approx(losses_by_loop(model), rel=1e-5)
    beside = measure_model(mixture(), Prompts.of(BY_DOMAIN), beside=model)
    assert "routing_before" not in beside and "agreement" not in beside["routing"]["mean"]


def test_measuring_changes_no_bit() -> None:
    model = mixture()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_model(model, Prompts.of(BY_DOMAIN), beside=mixture(seed=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_counts_of_a_very_large_mixture_are_left_out_and_leaders_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_COUNTS >= 32 * 64 * 64
    monkeypatch.setattr("moe_core.operations.measure.MAX_COUNTS", 3)
    report = measure_model(mixture(), Prompts.of(BY_DOMAIN))
    assert report["load"] is None and report["leading"]


def test_a_watcher_hears_of_every_prompt_and_may_end_it() -> None:
    heard: list[tuple[str, int, int]] = []
    measure_model(
        mixture(), Prompts.of(BY_DOMAIN), watch=lambda part, done, of: heard.append((part, done, of))
    )
    assert heard[-1] == ("measure", 5, 5)

    def stop(part: str, done: int, of: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        measure_model(mixture(), Prompts.of(BY_DOMAIN), watch=stop)


def test_what_cannot_be_measured_is_refused() -> None:
    model = mixture()
    with pytest.raises(SpecError, match="outside the vocabulary"):
        measure_model(model, Prompts.of({"law": [[1, 10**6]]}))
    with pytest.raises(SpecError, match="takes its texts as Prompts"):
        measure_model(model, BY_DOMAIN)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="is not a decoder"):
        measure_model(torch.nn.Linear(2, 2), Prompts.of(BY_DOMAIN))  # type: ignore[arg-type]
    wider = {**model.spec.model_dump(), "vocab_size": model.spec.vocab_size + 1}
    other = random_decoder(ModelSpec.parse(wider), 5, STD)
    with pytest.raises(SpecError, match="vocabularies of"):
        measure_model(model, Prompts.of(BY_DOMAIN), beside=other)


def test_models_that_say_nothing_do_not_say_the_same() -> None:
    model = mixture()
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    report = measure_model(model, Prompts.of(BY_DOMAIN), beside=model)
    for table in ("loss", "kl", "same_best_token"):
        assert all(math.isnan(value) for value in report[table].values()), table
