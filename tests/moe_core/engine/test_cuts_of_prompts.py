"""A prompt's logits are to the bit the same however it is cut, and whoever shares its steps."""

from __future__ import annotations

import pytest
import torch

from moe_core.kernels.cpu.native import library
from tests.moe_core.engine.conftest import Run
from tests.moe_core.engine.native_models import SPECS, build, engine_of

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")


@pytest.mark.parametrize("bits", [None, (8, 8, 8), (4, 4, 8)], ids=str)
@pytest.mark.parametrize(
    "name", ["mixtral", "shared expert, dense layer", "sinks, windows, biases, clamps", "latents"]
)
def test_a_prompt_has_the_same_logits_however_it_is_cut_and_beside_whom(monkeypatch, name: str, bits) -> None:
    """In pieces of more rows than vectors take at once and of fewer, which tiles and vectors multiply."""
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: True)
    found = []
    for size, others in ((70, ()), (40, ()), (13, ()), (12, ()), (64, (9, 30)), (17, (1, 14))):
        engine = engine_of(build(SPECS[name], bits), monkeypatch, max_batch_tokens=120, max_chunk_tokens=size)
        run = Run(engine)
        for length in others:
            run.submit([(5 * place) % 90 + 3 for place in range(length)], 20, ignore_eos=True)
        one = run.submit([(7 * place) % 90 + 3 for place in range(70)], 4, ignore_eos=True)
        while one.num_computed_tokens < 70:
            chunks = engine._plan()
            logits = engine.runner.run(chunks)
            sampled = [chunk.sequence for chunk in chunks if chunk.wants_sample]
            engine.scheduler.commit(chunks)
            for chunk in chunks:
                if chunk.wants_sample:
                    chunk.sequence.token_ids.append(11)
        found.append(logits[sampled.index(one)].clone())
    assert found[0].isfinite().all()
    assert [torch.equal(one, found[0]) for one in found] == [True] * len(found)
