"""Guessing changes how many steps a greedy answer takes, and nothing that is said or counted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.engine import Engine
from moe_core.engine.events import Done
from moe_core.engine.ngram import MAX_PAUSE_STEPS, NGRAM, NgramDrafter, num_right
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.sequence import FinishReason, Sequence
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from tests.moe_core.engine.conftest import MOE, TINY, PlainStream, Run, serve_spec

REPEATING = [(5 * place) % 7 for place in range(30)]


def engines(model, **changes) -> tuple[Run, Run]:
    return tuple(Run(Engine(serve_spec(ngram_tokens=tokens, **changes), model)) for tokens in (0, 5))


def serve(run: Run, prompts: list[list[int]], **options) -> tuple[list[list[int]], int]:
    sequences = [run.submit(ids, 60, **options) for ids in prompts]
    steps = 0
    while run.engine.has_work:
        run.step()
        steps += 1
    return [run.tokens[one.id] for one in sequences], steps


def forgetful(spec: ModelSpec):
    """Without attention the next token follows from the last alone: answers soon go in circles."""
    model = random_decoder(spec, seed=2, std=0.3)
    for block in model.layers:
        block.attention.o_proj.weight.data.zero_()
    return model


@pytest.fixture(scope="module")
def dense():
    return forgetful(ModelSpec(family="llama", **TINY))


@pytest.fixture(scope="module")
def mixture():
    return forgetful(ModelSpec(family="mixtral", moe=MOE, **TINY))


@pytest.fixture(params=["dense", "mixture"])
def model(request):
    return request.getfixturevalue(request.param)


def test_an_answer_is_the_same_in_fewer_steps(model) -> None:
    plain, guessing = engines(model)
    for ids in (REPEATING, [3, 1, 4, 1, 5]):
        wanted, many = serve(plain, [ids])
        found, few = serve(guessing, [ids])
        assert found == wanted
        assert few < many
    assert guessing.engine.pool.num_used == 0
    assert not guessing.engine.scheduler.drafter._histories


def test_in_company_with_chunked_prompts_and_preemption_it_is_the_same(model) -> None:
    rng = random.Random(2)
    prompts = [[rng.randrange(6) for _ in range(length)] for length in (40, 3, 25, 16)]
    plain, guessing = engines(model, kv_tokens=14 * 16, max_batch_tokens=24, max_chunk_tokens=8, max_sequences=3)
    assert serve(guessing, prompts)[0] == serve(plain, prompts)[0]


def test_every_token_is_counted_once_and_no_wrong_guess(mixture) -> None:
    plain, guessing = engines(mixture)
    for run in (plain, guessing):
        serve(run, [REPEATING, [8, 9, 8, 9, 8, 9]])
    counts = [run.engine.runner.counts.counts_PNLE.tolist() for run in (plain, guessing)]
    assert counts[0] == counts[1]


def test_the_next_turn_finds_the_answer_s_blocks(dense) -> None:
    plain, guessing = engines(dense)
    for run in (plain, guessing):
        [answer], _ = serve(run, [REPEATING])
        second = run.submit([*REPEATING, *answer, 5], 4)
        run.until_done()
        assert second.num_reused_tokens == 80


@pytest.mark.parametrize("cut", [1, 5, 17, 30])
def test_it_ends_where_it_would_have_ended(dense, cut: int) -> None:
    plain, guessing = engines(dense)
    [answer], _ = serve(plain, [REPEATING])
    end = answer[cut]
    for options in ({"stop_token_ids": frozenset({end})}, {"stop": (f" {end} ",)}):
        ends = []
        for run in (plain, guessing):
            run.texts.clear()
            sequence = run.submit(REPEATING, 60, **options)
            run.until_done()
            done = run.ends[sequence.id]
            assert isinstance(done, Done)
            said = run.tokens[sequence.id], run.texts[sequence.id]
            ends.append((*said, done.reason, done.num_output_tokens))
        assert ends[0] == ends[1]
        assert ends[0][2] is FinishReason.STOP


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_it_is_never_longer_than_was_asked_for(dense, most: int) -> None:
    for run in engines(dense):
        sequence = run.submit(REPEATING, most)
        run.until_done()
        assert len(run.tokens[sequence.id]) == most
        assert run.ends[sequence.id].num_output_tokens == most


def test_what_is_not_plainly_greedy_is_not_guessed(mixture) -> None:
    for options in ({"temperature": 1.0}, {"num_logprobs": 1}, {"logit_bias": ((3, 1.0),)}, {"record_routing": True}):
        plain, guessing = engines(mixture)
        assert serve(guessing, [REPEATING], **options) == serve(plain, [REPEATING], **options)


def sequence(ids: list[int]) -> Sequence:
    return Sequence(1, "", ids, len(ids), SamplingParams(max_tokens=50), Detokenizer(PlainStream()))


def test_it_guesses_what_followed_the_last_time() -> None:
    drafter = NgramDrafter(4)
    assert drafter.propose(sequence([1, 2, 3, 7, 7, 1, 2, 3, 8, 9, 1, 2, 3]), 10) == (8, 9, 1, 2)
    assert drafter.propose(sequence([1, 2, 3]), 10) == ()


def test_wrong_guesses_make_the_next_ones_rarer_and_right_ones_frequent_again() -> None:
    drafter, one = NgramDrafter(4), sequence([1, 2, 3, 4, 1, 2, 3])
    gaps, gap = [], 0
    for _ in range(300):
        if drafter.propose(one, 4):
            drafter.note(one, 0)
            gaps.append(gap)
            gap = 0
        else:
            gap += 1
    assert gaps[:5] == [0, 1, 3, 7, 15]
    assert max(gaps) <= MAX_PAUSE_STEPS
    while not drafter.propose(one, 4):
        pass
    drafter.note(one, 2)
    assert drafter.propose(one, 4)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_told_piece_by_piece_it_knows_the_same(ids, pieces) -> None:
    """Against a search from the end for the newest earlier place of the last tokens."""
    drafter, one, place = NgramDrafter(3), sequence([]), 0
    for size in pieces:
        one.token_ids += ids[place : place + size]
        place += size
        told, last = one.token_ids, one.token_ids[-NGRAM:]
        starts = [at for at in range(len(told) - NGRAM) if told[at : at + NGRAM] == last]
        wanted = tuple(told[starts[-1] + NGRAM :][:3]) if starts and len(last) == NGRAM else ()
        assert drafter.propose(one, 3) == wanted


def test_only_the_first_right_ones_count() -> None:
    assert num_right((1, 2, 3), [1, 2, 9, 4]) == 2
    assert num_right((1, 2), [9, 2, 3]) == 0
    assert num_right((1, 2), [1, 2, 3]) == 2
    assert num_right((1,), [None, 3]) == 0
