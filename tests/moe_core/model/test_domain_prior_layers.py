"""A policy that says something else for single layers: each layer does what is said of it, by its number in the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moe_core.errors import SpecError
from moe_core.model import DomainPrior, RoutingContext
from moe_core.model.init import random_decoder
from moe_core.routers import Routing
from moe_core.spec import DomainSpec, LayoutSpec, RoutingSpec
from moe_core.training import run_job
from tests.moe_core.tiny import STD, tiny_llama
from tests.moe_core.training.world import RecordingIO, make_world, tune_spec

NEG_INF = float("-inf")
DOMAINS = (
    DomainSpec(code="support", name_en="Support", name_zh="客服", experts=(0,)),
    DomainSpec(code="copy", name_en="Copy", name_zh="文案", experts=(1, 2)),
)
# Everywhere a push of 2; layer 2 masks, layer 5 has a floor, layer 7 leaves the router alone.
ROUTING = RoutingSpec.parse(
    {
        "domains": DOMAINS, "general_experts": (3,), "prior_strength": 2.0,
        "prior_layers": {2: {"mode": "mask"}, 5: {"mode": "floor", "floor": 0.8}, 7: {"mode": "none"}},
    }
)  # fmt: skip
LAYERS = (0, 2, 5, 7)


def made() -> DomainPrior:
    return DomainPrior.from_routing(ROUTING, num_moe_layers=4, num_experts=4, top_k=2, moe_layers=LAYERS)


def test_what_a_layer_does_is_said_by_its_number() -> None:
    assert [ROUTING.prior_in(layer).mode for layer in range(8)] == [
        "bias", "bias", "mask", "bias", "bias", "floor", "bias", "none",
    ]  # fmt: skip
    assert ROUTING.prior_in(3).strength == 2.0
    assert ROUTING.prior_in(5).floor == 0.8


def test_every_layer_has_the_rows_of_its_own() -> None:
    prior, domain_T = made(), torch.tensor([0, 1, -1])
    nothing = [0.0] * 4
    assert prior.rows(0, domain_T).tolist() == [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 2.0, 0.0], nothing]
    assert prior.rows(1, domain_T).tolist() == [
        [0.0, NEG_INF, NEG_INF, 0.0],
        [NEG_INF, 0.0, 0.0, 0.0],
        nothing,
    ]
    assert prior.rows(2, domain_T).tolist() == prior.rows(3, domain_T).tolist() == [nothing] * 3
    floors = [prior.floor(at, domain_T) for at in range(4)]
    shares = [floor.share_T.tolist() for floor in floors if floor is not None]
    assert shares == [[0.0] * 3, [0.0] * 3, [pytest.approx(0.8), pytest.approx(0.8), 0.0], [0.0] * 3]


def test_a_model_obeys_it_layer_by_layer() -> None:
    layout = LayoutSpec.parse(
        {"moe_layers": LAYERS, "num_experts": 4, "top_k": 2, "moe_intermediate_size": 16}
    )
    model = random_decoder(layout.applied_to(tiny_llama(num_hidden_layers=8)), 3, STD)
    seen: dict[int, Routing] = {}
    context = RoutingContext(
        prior=made(), domain_T=torch.zeros(24, dtype=torch.long), observe=seen.__setitem__
    )
    with torch.inference_mode():
        model(torch.arange(24).view(2, 12), context)
        raw = {mlp.layer: torch.softmax(seen[mlp.layer].logits_TE, -1) for mlp in model.moe_layers()}
    assert (raw[2][:, 1:3] == 0.0).all()
    assert (raw[0] > 0.0).all()
    assert float(raw[5][:, 0].min()) >= 0.8 - 1e-5
    assert float(raw[7][:, 0].min()) < 0.5


def test_a_policy_of_exceptions_alone_is_a_prior() -> None:
    assert RoutingSpec.parse({"prior_mode": "none", "prior_layers": {2: {"mode": "mask"}}}).has_prior
    assert not RoutingSpec.parse({"prior_mode": "none", "prior_layers": {2: {"mode": "none"}}}).has_prior


def test_a_layer_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    routing = RoutingSpec.parse({"domains": DOMAINS, "prior_layers": {99: {"mode": "mask"}, 2: {}}})
    sentence = "prior_layers names layer 99, but experts are in layers 0, 2, 5, 7"
    with pytest.raises(SpecError, match=sentence):
        DomainPrior.from_routing(routing, num_moe_layers=4, num_experts=4, top_k=2, moe_layers=LAYERS)
    routing.check_fits(4)
    spec = tune_spec()
    spec["routing"]["prior_layers"] = {"0": {"mode": "mask"}}
    io = RecordingIO(make_world(tmp_path), tmp_path)
    with pytest.raises(SpecError, match="prior_layers names layer 0, but experts are in layers 1, 3"):
        run_job("tune", spec, io)
