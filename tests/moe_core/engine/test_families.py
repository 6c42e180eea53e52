"""The engine serves every family: paged latents, windows, sinks and side-by-side blocks say what the model says."""

from __future__ import annotations

import random

import pytest
import torch

from moe_core.engine.engine import Engine
from moe_core.engine.kv_cache import PagedKVCache
from moe_core.model.decoder import Decoder
from moe_core.model.init import random_decoder
from moe_core.spec import LayoutSpec, cost_of
from tests.moe_core.engine.conftest import DEVICE, Run, serve_spec
from tests.moe_core.tiny import FAMILIES, STD, tiny_family, tiny_llama

MIXED = LayoutSpec.parse(
    {
        "moe_layers": [0, 2],
        "num_experts": 4,
        "expert_kinds": [
            {"kind": "swiglu", "width": 20},
            {"kind": "mlp", "width": 9},
            {"kind": "identity"},
            {"kind": "zero"},
        ],
    }
)


@pytest.fixture(scope="module", params=[*FAMILIES, "experts of several kinds"])
def model(request: pytest.FixtureRequest) -> Decoder:
    mixed = request.param not in FAMILIES
    spec = MIXED.applied_to(tiny_llama()) if mixed else tiny_family(request.param)
    # Without an end token answers are long enough for windows to matter.
    return random_decoder(spec.model_copy(update={"eos_token_ids": ()}), 2, STD).to(DEVICE)


def test_a_crowd_with_chunked_prompts_gets_what_plain_generation_gives(model: Decoder) -> None:
    run = Run(Engine(serve_spec(max_batch_tokens=19, max_chunk_tokens=7, max_sequences=5), model))
    rng = random.Random(3)
    wanted = {}
    for number, length in enumerate([40, 1, 17, 3, 31]):
        ids = [rng.randrange(97) for _ in range(length)]
        sequence = run.submit(ids, 6 + 3 * number)
        wanted[sequence.id] = model.generate(ids, 6 + 3 * number)
        run.step()
    run.until_done()
    assert run.tokens == wanted


def test_a_reused_prefix_changes_nothing(model: Decoder) -> None:
    run = Run(Engine(serve_spec(), model))
    head = [random.Random(4).randrange(97) for _ in range(40)]
    run.submit([*head, 1, 2], 4)
    run.until_done()
    second = run.submit([*head, 3], 12)
    run.until_done()
    assert second.num_reused_tokens == 32
    assert run.tokens[second.id] == model.generate([*head, 3], 12)


def test_the_cache_is_as_large_as_the_cost_model_says(model: Decoder) -> None:
    cache = PagedKVCache(model.spec, 3, torch.bfloat16)
    assert cache.num_bytes == 3 * 16 * cost_of(model.spec).kv_bytes_per_token
