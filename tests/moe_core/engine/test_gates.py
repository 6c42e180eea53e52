"""The engine with gates that leave places empty, and with gates that it must refuse."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from moe_core.engine.engine import Engine
from moe_core.errors import SpecError
from moe_core.model import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.routers import Routing
from moe_core.spec import ModelSpec
from moe_core.spec.gate import ExpertChoice, Gate, Hash, SigmoidGroups, Soft, TopP
from tests.moe_core.engine.conftest import DEVICE, MOE, TINY, Run, serve_spec

PROMPT = [5, 17, 3, 88, 40, 2, 9]


def model_with(gate: Gate) -> Decoder:
    spec = ModelSpec.parse({**TINY, "family": "turnout_moe", "moe": {**MOE, "gate": gate}})
    return random_decoder(spec, 5, 0.2).to(DEVICE)


@pytest.mark.parametrize(
    "gate", [TopP(p=0.4), SigmoidGroups(num_groups=2), Hash()], ids=lambda gate: gate.kind
)
def test_it_says_what_plain_generation_says(gate: Gate) -> None:
    model = model_with(gate)
    run = Run(Engine(serve_spec(), model))
    sequence = run.submit(PROMPT, 10)
    other = run.submit(PROMPT[::-1], 6)
    run.until_done()
    assert run.tokens[sequence.id] == model.generate(PROMPT, 10)
    assert run.tokens[other.id] == model.generate(PROMPT[::-1], 6)


def test_empty_places_are_recorded_as_such_and_never_counted() -> None:
    model = model_with(TopP(p=0.4))
    seen: dict[int, Routing] = {}
    ids = [*PROMPT, *model.generate(PROMPT, 6)][:-1]
    model(torch.tensor([ids], device=DEVICE), RoutingContext(observe=seen.__setitem__))
    engine = Engine(serve_spec(), model)
    run = Run(engine)
    sequence = run.submit(PROMPT, 6, record_routing=True)
    run.until_done()
    assert sequence.routed_experts is not None
    found = np.frombuffer(base64.b64decode(sequence.routed_experts.encoded()), "<i4").reshape(-1, 3, 2)
    expected = np.stack([seen[layer].expert_ids_TK.cpu().numpy() for layer in (0, 1, 2)], 1)
    assert (expected == -1).any()
    assert (expected >= 0).all(-1).any()
    assert (found == expected).all()
    assert engine.runner.counts is not None
    counts_LE = engine.runner.counts.counts_PNLE.sum((0, 1))
    for layer in (0, 1, 2):
        chosen = expected[:, layer][expected[:, layer] >= 0]
        assert counts_LE[layer].tolist() == np.bincount(chosen, minlength=4).tolist()


@pytest.mark.parametrize("gate", [Soft(), ExpertChoice()], ids=lambda gate: gate.kind)
def test_a_gate_that_sees_the_batch_is_refused(gate: Gate) -> None:
    with pytest.raises(SpecError, match="cannot answer token by token"):
        Engine(serve_spec(), model_with(gate))
