"""What a request is told of its routing: the model's own routers' choice, in SGLang's shape."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_core.engine.engine import Engine
from moe_core.engine.routed_experts import MAX_RECORD_BYTES, RoutedExperts
from moe_core.engine.sampling_params import SamplingParams
from moe_core.errors import SpecError
from moe_core.model import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.routers import Routing
from moe_core.spec import ModelSpec
from tests.moe_core.engine.conftest import DEVICE, MOE, TINY, PlainStream, Run, serve_spec

PROMPT = [5, 17, 3, 88, 40, 2, 9]
NEW = 6


@pytest.fixture(scope="module")
def model() -> Decoder:
    """Experts in the first and the last of three layers."""
    return random_decoder(
        ModelSpec.parse({**TINY, "family": "turnout_moe", "moe": {**MOE, "moe_layers": [0, 2]}}), 5, 0.2
    ).to(DEVICE)


@pytest.fixture(scope="module")
def chosen_TLK(model: Decoder) -> NDArray[np.int32]:
    seen: dict[int, Routing] = {}
    ids = [*PROMPT, *model.generate(PROMPT, NEW)][:-1]
    model(torch.tensor([ids], device=DEVICE), RoutingContext(observe=seen.__setitem__))
    chosen = np.zeros((len(ids), 3, 2), np.int32)
    for layer in (0, 2):
        chosen[:, layer] = seen[layer].expert_ids_TK.cpu().numpy()
    assert len(np.unique(chosen[:, [0, 2]])) > 2
    return chosen


def decoded(record: RoutedExperts | None) -> NDArray[np.int32]:
    assert record is not None
    return np.frombuffer(base64.b64decode(record.encoded()), "<i4").reshape(-1, 3, 2)


def test_the_record_is_what_the_models_routers_choose(model: Decoder, chosen_TLK: NDArray[np.int32]) -> None:
    run = Run(Engine(serve_spec(), model))
    sequence = run.submit(PROMPT, NEW, record_routing=True)
    run.submit(PROMPT[::-1], NEW)
    run.until_done()
    assert np.array_equal(decoded(sequence.routed_experts), chosen_TLK)


@pytest.mark.parametrize("start", [1, 5, len(PROMPT)])
def test_what_comes_before_the_start_is_left_out(
    model: Decoder, chosen_TLK: NDArray[np.int32], start: int
) -> None:
    # Two tokens a step: the start lies in the middle of a chunk, and chunks before it bring nothing.
    engine = Engine(serve_spec(max_batch_tokens=2, max_chunk_tokens=2, max_sequences=1), model)
    run = Run(engine)
    params = SamplingParams(max_tokens=NEW)
    sequence = engine.submit(PROMPT, params, PlainStream(), record_routing=True, routing_start=start)
    run.until_done()
    assert np.array_equal(decoded(sequence.routed_experts), chosen_TLK[start:])


def test_a_start_beyond_the_prompt_is_refused(model: Decoder) -> None:
    engine = Engine(serve_spec(), model)
    with pytest.raises(SpecError, match=r"routed_experts_start_len \(8\) is beyond the prompt of 7 tokens"):
        engine.submit(
            PROMPT, SamplingParams(max_tokens=4), PlainStream(), record_routing=True, routing_start=8
        )
    assert not engine.has_work


def test_a_record_that_would_be_too_long_is_refused_before_anything_runs(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_bytes = 4 * 3 * 2
    monkeypatch.setattr("moe_core.engine.routed_experts.MAX_RECORD_BYTES", 20 * token_bytes)
    engine = Engine(serve_spec(), model)
    engine.submit(PROMPT, SamplingParams(max_tokens=13), PlainStream(), record_routing=True)
    with pytest.raises(SpecError, match="has room for 20: lower max_tokens"):
        engine.submit(PROMPT, SamplingParams(max_tokens=14), PlainStream(), record_routing=True)
    engine.submit(PROMPT, SamplingParams(max_tokens=14), PlainStream(), record_routing=True, routing_start=1)
    assert MAX_RECORD_BYTES == 8 << 20
