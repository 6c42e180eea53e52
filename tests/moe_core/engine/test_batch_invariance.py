"""In batch-invariant mode a request's logits are the same to the last bit, alone and in any company."""

from __future__ import annotations

import random

import pytest
import torch

from moe_core.engine.engine import Engine
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from tests.moe_core.engine.conftest import MOE, TINY, Run, serve_spec

MODES = {"batch_invariant": True, "max_batch_tokens": 40, "max_chunk_tokens": 32, "max_sequences": 6}


@pytest.fixture(scope="module")
def model():
    # bfloat16: the kernels for few rows and for many round differently, so that company shows.
    spec = ModelSpec(family="mixtral", moe=MOE, **TINY)
    return random_decoder(spec, seed=4, std=0.3).to(torch.bfloat16)


class Recording(Run):
    """Keeps the logits of every sample."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.logits: dict[int, list[torch.Tensor]] = {}
        run = engine.runner.run

        def kept(chunks, **options):
            out = run(chunks, **options)
            for chunk, row in zip([one for one in chunks if one.wants_sample], out, strict=True):
                self.logits.setdefault(chunk.sequence.id, []).append(row.clone())
            return out

        engine.runner.run = kept


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(97) for _ in range(length)]


def alone(model, ids: list[int], **options) -> tuple[list[int], torch.Tensor]:
    run = Recording(Engine(serve_spec(**MODES), model))
    sequence = run.submit(ids, 14, **options)
    run.until_done()
    return run.tokens[sequence.id], torch.stack(run.logits[sequence.id])


@pytest.mark.parametrize("length", [1, 15, 32, 33, 77])
def test_company_prefix_reuse_and_preemption_change_no_bit(model, length) -> None:
    ids = prompt(length, length)
    options = {"temperature": 1.2, "seed": length}
    tokens, logits = alone(model, ids, **options)
    # Ten blocks more than the longest needs: with six sequences some lose their places and come back.
    run = Recording(Engine(serve_spec(**MODES, kv_tokens=16 * 14), model))
    others = [run.submit([*ids[: 20 * n], *prompt(100 + n, 9 * n + 1)], 20, seed=n) for n in range(4)]
    run.step()
    again = [run.submit(ids, 14, **options) for _ in range(2)]
    run.until_done()
    assert len(run.ends) == len(others) + len(again)
    for sequence in again:
        assert run.tokens[sequence.id] == tokens
        assert torch.equal(torch.stack(run.logits[sequence.id])[-len(logits) :], logits)


def test_a_long_prefix_is_still_reused(model) -> None:
    run = Run(Engine(serve_spec(**MODES), model))
    ids = prompt(1, 80)
    run.submit(ids, 3)
    run.until_done()
    second = run.submit([*ids, 5], 3)
    run.until_done()
    assert second.num_reused_tokens == 64


def test_without_the_mode_company_does_change_bits(model) -> None:
    """What the mode is for: were this not so, the tests above could not fail."""
    modes = MODES | {"batch_invariant": False}
    ids = prompt(3, 33)

    def logits_in(company: int) -> torch.Tensor:
        run = Recording(Engine(serve_spec(**modes), model))
        for number in range(company):
            run.submit(prompt(50 + number, 20), 14)
            run.step()
        sequence = run.submit(ids, 14)
        run.until_done()
        return torch.stack(run.logits[sequence.id])

    if torch.equal(logits_in(0), logits_in(4)):
        pytest.skip(
            "this processor's products round alike for few rows and for many: there is nothing to prevent"
        )


def test_guesses_beside_it_are_refused_from_the_start() -> None:
    with pytest.raises(
        ValueError, match=r"ngram_tokens \(3\) are checked in one step .* batch_invariant to false"
    ):
        serve_spec(ngram_tokens=3, **MODES)


def test_a_step_without_room_for_a_piece_is_refused_from_the_start() -> None:
    with pytest.raises(ValueError, match="batch_invariant needs max_chunk_tokens"):
        serve_spec(batch_invariant=True, max_batch_tokens=20, max_sequences=6)
