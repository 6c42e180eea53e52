"""Guessing changes how many steps a greedy answer takes, and nothing that is said or counted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta, Done
from moe_core.engine.ngram import FIRST_SHARES, LONGEST, MAX_PLACES, NGRAM, NgramDrafter
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.sequence import FinishReason, Sequence
from moe_core.engine.step_costs import StepCosts
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
    plain, guessing = engines(
        model, kv_tokens=14 * 16, max_batch_tokens=24, max_chunk_tokens=8, max_sequences=3
    )
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


def test_an_answer_to_the_model_s_end_is_the_same(model) -> None:
    """The last positions that a model knows are reached by guesses too, and none stands beyond them."""
    prompt = [7, 8, 9] * 150
    plain, guessing = engines(model, kv_tokens=2048)
    found = []
    for run in (plain, guessing):
        sequence = run.submit(prompt, 500)
        run.until_done()
        found.append((run.tokens[sequence.id], run.ends[sequence.id].reason))
    assert found[0] == found[1]
    assert len(found[0][0]) == 512 - len(prompt)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.4, "seed": 3}, {"temperature": 0.9, "top_k": 2, "seed": -8}, {"num_logprobs": 2}],
    ids=str,
)
def test_drawn_answers_and_their_log_probabilities_are_the_same_in_no_more_steps(model, options) -> None:
    told = []
    for run in engines(model):
        sequences = [run.submit(ids, 60, **options) for ids in (REPEATING, [3, 1, 4, 1, 5])]
        events = []
        while run.engine.has_work:
            events += [one for one in run.step() if isinstance(one, Delta)]
        # A step's events may come in another order; each answer's are one after the other.
        told.append(
            [
                [(one.token_ids, one.logprobs) for one in events if one.sequence_id == own.id]
                for own in sequences
            ]
        )
        steps = run.engine.stats.snapshot(run.engine).num_steps
    assert [[ids for ids, _ in answer] for answer in told[0]] == [
        [ids for ids, _ in answer] for answer in told[1]
    ]
    for plain, guessed in zip(*told, strict=True):
        for (_, wanted), (_, found) in zip(plain, guessed, strict=True):
            for one, other in zip(wanted, found, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    # What is drawn need not repeat: that hangs on the last bits of the scores, which other instructions round otherwise.
    assert steps <= 60 if "temperature" in options else steps < 60


def test_where_scores_are_edited_or_experts_recorded_nothing_is_guessed(mixture) -> None:
    for options in ({"logit_bias": ((3, 1.0),)}, {"frequency_penalty": 0.1}, {"record_routing": True}):
        plain, guessing = engines(mixture)
        assert serve(guessing, [REPEATING], **options) == serve(plain, [REPEATING], **options)


def sequence(ids: list[int]) -> Sequence:
    return Sequence(1, "", ids, len(ids), SamplingParams(max_tokens=50), Detokenizer(PlainStream()))


class Flat(StepCosts):
    """A machine on which a step of any size takes as long, or each further token so much more."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.slope = slope

    def of(self, num_tokens: int) -> float:
        return 1.0 + self.slope * (num_tokens - 1)


def drafter_of(slope: float = 0.0, num_tokens: int = 4, **changes) -> NgramDrafter:
    drafter = NgramDrafter(num_tokens, costs=Flat(slope), **changes)
    drafter.begin(1)
    return drafter


def proposed(drafter: NgramDrafter, one: Sequence, most: int = 10) -> tuple[int, ...]:
    drafter.begin(1)
    return drafter.propose(one, most)


def test_it_guesses_what_followed_the_last_time() -> None:
    drafter = drafter_of()
    assert drafter.propose(sequence([1, 2, 3, 7, 7, 1, 2, 3, 8, 9, 1, 2, 3]), 10) == (8, 9, 1, 2)
    assert drafter_of().propose(sequence([1, 2, 3]), 10) == ()


def test_it_guesses_what_followed_the_longest_of_the_newest_repetitions() -> None:
    ids = [5, 6, 1, 2, 3, 7, 4, 6, 1, 2, 3, 8, 4, 9, 1, 2, 3, 9, 5, 6, 1, 2, 3]
    assert proposed(drafter_of(), sequence(ids), 2) == (7, 4)
    # Of repetitions as long the newest; further back than four places nobody looks.
    assert proposed(drafter_of(), sequence(ids[6:]), 1) == (8,)
    assert proposed(drafter_of(), sequence([*ids[:6], *[4, 1, 2, 3, 0] * 4, *ids[-5:]]), 1) == (0,)


def test_what_goes_in_circles_is_guessed_beyond_its_end() -> None:
    assert proposed(drafter_of(num_tokens=7), sequence([9, 1, 2, 1, 2, 1, 2]), 10) == (1, 2) * 3 + (1,)


def test_no_guess_stands_past_the_end_of_answer_or_model() -> None:
    ids = [1, 2, 3, 4] * 4
    assert len(proposed(drafter_of(num_tokens=15, max_length=20), sequence(ids))) == 3
    assert proposed(drafter_of(max_length=17), sequence(ids)) == ()
    one = sequence([*ids, 1, 2])
    one.num_prompt_tokens = 1
    one.sampling = SamplingParams(max_tokens=19)
    assert len(proposed(drafter_of(), one)) == 1
    assert proposed(drafter_of(), sequence(ids), 0) == ()


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.3, 0.7, 0.95])
def test_as_many_are_guessed_as_pay(slope: float) -> None:
    # After eight repeated tokens the next one is right so often.
    share = FIRST_SHARES[-1]
    number = max(range(16), key=lambda most: sum(share**n for n in range(most + 1)) / (1 + slope * most))
    assert len(proposed(drafter_of(slope, 15), sequence([1, 2, 3, 4, 5, 6, 7] * 4), 15)) == number


def test_in_company_each_guess_must_pay_beside_all_others() -> None:
    drafter, ids, share = drafter_of(0.25, 15), [1, 2, 3, 4, 5, 6, 7] * 4, FIRST_SHARES[-1]
    drafter.begin(16)
    many = [len(drafter.propose(sequence(list(ids)), 15)) for _ in range(3)]
    # 16 tokens take 4.75 steps' time: one more 0.25 for 0.85 of a token, which at 3.37 tokens a step's time just pays.
    gains = (0, share, share + share**2)
    rates = [(16 + gained) / (1 + 0.25 * (15 + rows)) for rows, gained in enumerate(gains)]
    assert many[0] == max(range(3), key=rates.__getitem__) == 1
    assert sum(many) < 3 * 7


def answering(prompt: list[int]) -> Sequence:
    """One whose next tokens are of its answer."""
    return Sequence(
        1, "", list(prompt), len(prompt), SamplingParams(max_tokens=500), Detokenizer(PlainStream())
    )


def test_guesses_become_rare_where_they_are_wrong() -> None:
    """Each three tokens that stood together are followed by something new."""
    drafter, one, wrong = drafter_of(0.35), answering([1, 2, 3, 4]), 0
    for new in range(5, 45):
        one.token_ids += [1, 2, 3]
        wrong += len(proposed(drafter, one)) > 0
        one.token_ids.append(new)
    assert 0 < wrong < 5
    # What was learnt is of repetitions of three: a longer one is guessed all the same.
    one.token_ids += [71, 72, 73, 74, 75, 76, 77, 71, 72, 73, 74, 75, 76]
    assert proposed(drafter, one)
    drafter.forget(one)
    assert not drafter._histories


def test_what_was_not_guessed_tells_as_much() -> None:
    """Nothing pays on a machine where a further token costs a step; of what an answer repeats is learnt all the same."""
    repeating, other = answering([1, 2, 3, 4]), answering([1, 2, 3, 4])
    other.id = 2
    drafter = drafter_of(1.0)
    for new in range(20):
        for token in (1, 2, 3, 4):
            repeating.token_ids.append(token)
            assert proposed(drafter, repeating) == ()
        for token in (1, 2, 3, 50 + new):
            other.token_ids.append(token)
            assert proposed(drafter, other) == ()
    drafter.costs = Flat(0.45)
    assert proposed(drafter, repeating)
    other.token_ids += [1, 2, 3]
    assert proposed(drafter, other) == ()


def test_a_prompt_that_does_not_repeat_forbids_no_guess() -> None:
    """How people write is no sign of how a model goes on."""
    prompt = [token for new in range(40) for token in (1, 2, 3, 10 + new)]
    assert proposed(drafter_of(0.35), answering([*prompt, 1, 2, 3]))


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_told_piece_by_piece_it_knows_the_same(ids, pieces) -> None:
    """Against a search from the end for the longest of the newest earlier places of the last tokens."""
    drafter, one, place = drafter_of(num_tokens=1), sequence([]), 0
    for size in pieces:
        one.token_ids += ids[place : place + size]
        place += size
        told = one.token_ids
        ends = [at for at in range(NGRAM, len(told)) if told[at - NGRAM : at] == told[-NGRAM:]][::-1][
            :MAX_PLACES
        ]
        repeated = {
            at: max(n for n in range(LONGEST + 1) if n <= at and told[at - n : at] == told[len(told) - n :])
            for at in ends
        }
        wanted = (told[max(ends, key=repeated.__getitem__)],) if ends else ()
        assert proposed(drafter, one, 1) == wanted
