"""Several answers to one prompt: the prompt is computed once, and each answer is its own."""

from __future__ import annotations

import pytest

from moe_core.engine.engine import Engine
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.sequence import SequenceState
from moe_core.errors import EngineBusy, SpecError
from tests.moe_core.engine.conftest import PlainStream, Run, serve_spec

PROMPT = [(7 * place) % 97 for place in range(50)]
WARM = SamplingParams(max_tokens=10, temperature=1.0, seed=11)


def ask(run: Run, number: int, params: SamplingParams = WARM, **options):
    return run.engine.submit_choices(
        PROMPT, params, [(PlainStream(), None) for _ in range(number)], **options
    )


def test_the_prompt_is_computed_once_and_its_blocks_are_shared(mixtral) -> None:
    run = Run(Engine(serve_spec(), mixtral))
    first, *others = ask(run, 4)
    run.step()
    assert [one.state for one in others] == [SequenceState.WAITING] * 3
    run.step()
    shared = first.block_ids[:3]
    assert all(one.block_ids[:3] == shared for one in others)
    assert run.engine.pool.num_used == 3 + 4
    run.until_done()
    assert [one.num_reused_tokens for one in (first, *others)] == [0, 48, 48, 48]
    assert run.engine.pool.num_used == 0


def test_answers_differ_but_each_is_what_its_seed_says_alone(llama) -> None:
    together = Run(Engine(serve_spec(), llama))
    sequences = ask(together, 3)
    together.until_done()
    texts = [together.tokens[one.id] for one in sequences]
    assert len({tuple(text) for text in texts}) == 3
    for index, text in enumerate(texts):
        alone = Run(Engine(serve_spec(), llama))
        [one] = ask(alone, 1, WARM.of_choice(index))
        alone.until_done()
        assert alone.tokens[one.id] == text


def test_the_first_answer_is_the_one_of_a_request_for_one() -> None:
    assert WARM.of_choice(0) is WARM
    assert len({WARM.of_choice(index).seed for index in range(100)}) == 100


@pytest.mark.parametrize("when", [0, 1])
def test_when_the_first_answer_is_cancelled_the_others_go_on(llama, when) -> None:
    run = Run(Engine(serve_spec(), llama))
    first, *others = ask(run, 3)
    for _ in range(when):
        run.step()
    run.engine.cancel(first.id)
    run.until_done()
    assert [len(run.tokens[one.id]) for one in others] == [10, 10]
    assert run.engine.pool.num_used == 0


def test_a_held_answer_can_be_cancelled(llama) -> None:
    run = Run(Engine(serve_spec(max_batch_tokens=16), llama))
    first, second = ask(run, 2)
    run.step()
    assert second.state is SequenceState.HELD
    run.engine.cancel(second.id)
    run.until_done()
    assert len(run.tokens[first.id]) == 10
    assert second.id not in run.tokens
    assert run.engine.scheduler.num_waiting == 0


def test_all_answers_are_queued_or_none(llama) -> None:
    run = Run(Engine(serve_spec(max_waiting=3), llama))
    with pytest.raises(SpecError, match="4 answers at once are more than the 3 that may wait here"):
        ask(run, 4)
    assert run.engine.scheduler.num_waiting == 0
    assert not run.engine.has_work
    ask(run, 3)
    with pytest.raises(EngineBusy):
        ask(run, 1)
    run.until_done()
