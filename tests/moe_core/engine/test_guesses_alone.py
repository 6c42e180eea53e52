"""In the native step a guessed token is to the bit what it is in a step of its own, so guessing changes no answer."""

from __future__ import annotations

import pytest
import torch

from moe_core.engine import native_step
from moe_core.engine.engine import Engine
from moe_core.engine.ngram import MAX_TOKENS, NgramDrafter
from moe_core.engine.scheduler import Chunk
from moe_core.kernels.cpu.native import library
from moe_core.spec import ModelSpec
from tests.moe_core.engine.conftest import MOE, TINY, Run
from tests.moe_core.engine.native_models import GATES, SPECS, build, engine_of

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
LONG = ModelSpec.parse({"family": "mixtral", "moe": MOE, **TINY, "max_position_embeddings": 4096})
# As many guesses as there may be: more rows in a step than vectors take at once, where there are tiles.
SAID = (11, 45, 11, 2, 90, 17, 17, 3, 64, 64, 29, 8, 81, 50, 11, 45)


@pytest.fixture(autouse=True)
def _panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: True)


def prompt(length: int) -> list[int]:
    return [(7 * place) % 90 + 3 for place in range(length)]


def said_alone(engine: Engine, length: int) -> list[torch.Tensor]:
    """The logits after each of SAID, a step each; of a sequence of `length` tokens that stays."""
    run = Run(engine)
    one = run.submit(prompt(length), 200, ignore_eos=True)
    while not one.num_output_tokens:
        run.step()
    found = []
    one.token_ids[-1] = SAID[0]
    for following in (*SAID[1:], 0):
        chunks = engine._plan()
        assert [chunk.num_tokens for chunk in chunks] == [1]
        found.append(engine.runner.run(chunks)[0].clone())
        engine.scheduler.commit(chunks)
        one.token_ids.append(following)
    engine.cancel(one.id)
    run.step()
    engine.forget_history()
    return found


def said_at_once(engine: Engine, length: int) -> torch.Tensor:
    """The same logits out of one step with fifteen guesses, beside two other sequences, of which one has a guess too."""
    run = Run(engine)
    sequences = []
    for size in (21, 4, length):
        sequences.append(run.submit(prompt(size), 200, ignore_eos=True))
        while not sequences[-1].num_output_tokens:
            run.step()
    chunks = []
    for one, drafts in zip(sequences, ((), (5,), SAID[1:]), strict=True):
        one.token_ids[-1] = SAID[0]
        end = len(one.token_ids) + len(drafts)
        engine.scheduler._grow(one, end)
        chunks.append(Chunk(one, one.num_computed_tokens, end, drafts))
    chunks.sort(key=lambda chunk: chunk.num_tokens > 1)
    logits = engine.runner.run(chunks).clone()
    assert len(logits) == len(SAID) + 3
    assert [len(chunk.drafts) for chunk in chunks] == [0, 1, MAX_TOKENS]
    engine.cancel(*(one.id for one in sequences))
    run.step()
    engine.forget_history()
    return logits[3:]


def assert_the_same(engine: Engine, length: int) -> None:
    engine.scheduler.drafter = None
    alone, at_once = said_alone(engine, length), said_at_once(engine, length)
    for place, wanted in enumerate(alone):
        assert wanted.isfinite().all()
        assert torch.equal(at_once[place], wanted), f"guess {place}"


@pytest.mark.parametrize("bits", [None, (8, 8, 8), (4, 4, 8)], ids=str)
@pytest.mark.parametrize("name", [*SPECS, *GATES])
def test_of_every_model_that_the_kernels_know(monkeypatch, name: str, bits) -> None:
    spec = ModelSpec.parse({**{**SPECS, **GATES}[name].model_dump(), "max_position_embeddings": 160})
    if bits is not None and spec.moe is None:
        pytest.skip("a dense model has no experts to pack")
    engine = engine_of(build(spec, bits), monkeypatch, max_sequences=8)
    assert engine.runner.native is not None
    # Among the guesses one begins another stretch of keys.
    assert_the_same(engine, 124)


def test_after_thousands_of_tokens(monkeypatch) -> None:
    engine = engine_of(build(LONG), monkeypatch, kv_tokens=8192, max_batch_tokens=512, max_sequences=8)
    for length in (1020, 2044, 3000):
        assert_the_same(engine, length)


def test_it_is_on_by_itself_only_where_it_changes_nothing(monkeypatch) -> None:
    def drafter(**changes: object) -> NgramDrafter | None:
        return engine_of(build(SPECS["mixtral"]), monkeypatch, **changes).scheduler.drafter

    assert drafter().num_tokens == MAX_TOKENS
    assert drafter(ngram_tokens=0) is None
    assert drafter(batch_invariant=True) is None
    assert drafter(ngram_tokens=3).num_tokens == 3
    # In the decoder in torch a step of several tokens rounds otherwise than steps of one.
    monkeypatch.setattr(native_step, "library", lambda: None)
    assert drafter() is None


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_engine_says_the_same_with_and_without_and_tells_how_many_were_right(
    monkeypatch, temperature: float
) -> None:
    spec = ModelSpec.parse({"family": "mixtral", "moe": MOE, **TINY})
    told = []
    for number in (0, None):
        engine = engine_of(build(spec), monkeypatch, ngram_tokens=number)
        if engine.scheduler.drafter is not None:
            # Guesses that always pay.
            monkeypatch.setattr(engine.runner.costs, "of", lambda num_tokens: 1.0)
        run = Run(engine)
        sequences = [
            run.submit([4, 9, 4, 9, 4, 9, number], 80, ignore_eos=True, temperature=temperature, seed=5)
            for number in (4, 30)
        ]
        run.until_done()
        told.append([run.tokens[one.id] for one in sequences])
        now = engine.stats.snapshot(engine)
        assert now.output_tokens == 160
        # What is drawn from so odd a model repeats nothing for sure.
        assert now.guessed_tokens == 0 if number == 0 else now.guessed_tokens > 0 or temperature
        assert 0 <= now.kept_guesses <= now.guessed_tokens
    assert told[0] == told[1]
    assert now.num_steps == 1 + 79 if not now.kept_guesses else now.num_steps < 81
