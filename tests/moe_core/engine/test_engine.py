"""The engine says exactly what the model alone would say, whatever shares its batch."""

from __future__ import annotations

import random

import pytest

from moe_core.engine.engine import Engine
from moe_core.engine.events import Done, Failed, Started
from moe_core.engine.sequence import FinishReason
from moe_core.errors import EngineBusy, PromptTooLong, SpecError
from tests.moe_core.engine.conftest import Run, serve_spec


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(97) for _ in range(length)] for length in lengths]


@pytest.fixture(params=["llama", "mixtral"])
def model(request):
    return request.getfixturevalue(request.param)


def test_alone_it_equals_plain_generation(model) -> None:
    for ids in prompts([1, 5, 16, 33]):
        run = Run(Engine(serve_spec(), model))
        sequence = run.submit(ids, 24)
        run.until_done()
        assert run.tokens[sequence.id] == model.generate(ids, 24)


def test_in_a_crowd_with_chunked_prompts_it_equals_plain_generation(model) -> None:
    engine = Engine(serve_spec(max_batch_tokens=19, max_chunk_tokens=7, max_sequences=5), model)
    run = Run(engine)
    wanted = {}
    for number, ids in enumerate(prompts([40, 1, 17, 3, 64, 16, 31, 90])):
        sequence = run.submit(ids, 6 + 3 * number)
        wanted[sequence.id] = model.generate(ids, 6 + 3 * number)
        run.step()
    run.until_done()
    assert run.tokens == wanted


def test_a_shared_prefix_is_reused_and_changes_nothing(model) -> None:
    run = Run(Engine(serve_spec(), model))
    head = prompts([50])[0]
    first = run.submit([*head, 1, 2], 12)
    run.until_done()
    second = run.submit([*head, 3], 12)
    third = run.submit([*head, 1, 2], 12)
    run.until_done()
    assert (second.num_reused_tokens, third.num_reused_tokens) == (48, 48)
    assert run.tokens[second.id] == model.generate([*head, 3], 12)
    assert run.tokens[third.id] == run.tokens[first.id] == model.generate([*head, 1, 2], 12)


def test_an_answer_is_reused_in_the_next_turn(llama) -> None:
    run = Run(Engine(serve_spec(), llama))
    first = run.submit(prompts([10])[0], 40)
    run.until_done()
    ids = [*prompts([10])[0], *run.tokens[first.id], 5, 6]
    second = run.submit(ids, 8)
    run.until_done()
    assert second.num_reused_tokens == 48
    assert run.tokens[second.id] == llama.generate(ids, 8)


def test_another_salt_or_domain_shares_no_block(mixtral) -> None:
    domains = [{"code": "a", "name_en": "A", "name_zh": "甲", "experts": [1]}]
    run = Run(Engine(serve_spec(domains=domains), mixtral))
    ids = prompts([40])[0]
    for options in ({}, {"cache_salt": "team"}, {"domain": 0}):
        sequence = run.submit(ids, 2, **options)
        run.until_done()
        assert sequence.num_reused_tokens == 0


def test_preemption_recomputes_and_changes_nothing(model) -> None:
    # Six blocks for three sequences that each grow to four.
    engine = Engine(serve_spec(kv_tokens=6 * 16, max_batch_tokens=32, max_sequences=3), model)
    run = Run(engine)
    sequences = [run.submit(ids, 40) for ids in prompts([20, 18, 16])]
    run.until_done()
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    for sequence in sequences:
        ids = sequence.token_ids[: sequence.num_prompt_tokens]
        assert run.tokens[sequence.id] == model.generate(ids, 40)
    assert engine.pool.num_used == 0


def test_it_stops_at_an_end_token_without_its_text(llama) -> None:
    ids = prompts([9])[0]
    answer = llama.generate(ids, 20)
    run = Run(Engine(serve_spec(), llama))
    sequence = run.submit(ids, 20, stop_token_ids=frozenset({answer[5]}))
    run.until_done()
    cut = answer.index(answer[5]) + 1
    assert run.tokens[sequence.id] == answer[:cut]
    assert run.texts[sequence.id] == "".join(f"{token} " for token in answer[: cut - 1])
    assert run.ends[sequence.id].reason is FinishReason.STOP


def test_it_stops_at_a_stop_string_and_shows_no_part_of_it(llama) -> None:
    ids = prompts([9])[0]
    answer = llama.generate(ids, 20)
    stop = f"{answer[3]} {answer[4]} "
    run = Run(Engine(serve_spec(), llama))
    sequence = run.submit(ids, 20, stop=(stop,))
    run.until_done()
    whole = "".join(f"{token} " for token in answer)
    assert run.texts[sequence.id] == whole[: whole.index(stop)]
    assert run.ends[sequence.id].reason is FinishReason.STOP


def test_the_end_says_how_many_tokens_and_why(llama) -> None:
    run = Run(Engine(serve_spec(), llama))
    sequence = run.submit(prompts([21])[0], 5)
    started = [event for event in run.step() if isinstance(event, Started)]
    run.until_done()
    end = run.ends[sequence.id]
    assert started == [Started(sequence.id, 21, 0)]
    assert isinstance(end, Done)
    assert (end.reason, end.num_prompt_tokens, end.num_output_tokens) == (FinishReason.LENGTH, 21, 5)
    assert 0 <= end.timing_ms["queue_ms"] <= end.timing_ms["first_token_ms"] <= end.timing_ms["total_ms"]


def test_a_full_queue_is_busy(llama) -> None:
    run = Run(Engine(serve_spec(max_waiting=2), llama))
    run.submit([1])
    run.submit([2])
    with pytest.raises(EngineBusy, match="2 requests wait"):
        run.submit([3])


def test_a_request_that_waits_too_long_is_told_so(llama) -> None:
    run = Run(Engine(serve_spec(max_sequences=1, max_wait_s=0.5), llama))
    first, second = run.submit([1], 50), run.submit([2], 50)
    run.step()
    second.arrived_at -= 1.0
    run.until_done()
    assert isinstance(run.ends[second.id], Failed)
    assert run.ends[second.id].code == "queue_timeout"
    assert len(run.tokens[first.id]) == 50


def test_prompts_that_cannot_fit_are_refused_with_the_limit(llama) -> None:
    run = Run(Engine(serve_spec(kv_tokens=64), llama))
    with pytest.raises(PromptTooLong, match="64 tokens; this deployment takes at most 63"):
        run.submit([1] * 64)
    with pytest.raises(SpecError, match="outside the vocabulary of 97"):
        run.submit([97])
    with pytest.raises(SpecError, match="empty"):
        run.submit([])


def test_an_answer_ends_where_the_cache_does(llama) -> None:
    run = Run(Engine(serve_spec(kv_tokens=64), llama))
    sequence = run.submit([1] * 60, 1000)
    run.until_done()
    assert len(run.tokens[sequence.id]) == 4
    assert run.ends[sequence.id].reason is FinishReason.LENGTH


def test_logits_that_are_not_finite_fail_only_their_own_request(llama) -> None:
    run = Run(Engine(serve_spec(), llama))
    good, bad = run.submit([1, 2, 3], 6), run.submit([4, 5, 6], 6)
    run.step()
    run.engine.runner.cache._k_NPGd[0][bad.block_ids[0]] = float("nan")
    run.until_done()
    assert run.ends[bad.id].code == "not_finite"
    assert run.tokens[good.id] == llama.generate([1, 2, 3], 6)


def test_a_thousand_random_cancels_leave_no_block_behind(llama) -> None:
    rng = random.Random(7)
    engine = Engine(serve_spec(kv_tokens=320, max_sequences=6, max_batch_tokens=24, max_waiting=1000), llama)
    run = Run(engine)
    live: list[int] = []
    for _ in range(1000):
        ids = [rng.randrange(4) for _ in range(rng.randrange(1, 60))]
        live.append(run.submit(ids, rng.randrange(1, 30)).id)
        if rng.random() < 0.9:
            run.step()
        engine.cancel(live.pop(rng.randrange(len(live))))
    for sequence_id in live:
        engine.cancel(sequence_id)
    run.until_done()
    assert engine.pool.num_used == 0
    assert not engine.scheduler.has_work
    assert len(run.ends) == 1000
