"""Bias, penalties and least lengths change the scores as vLLM's formulas say, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moe_core.engine.engine import Engine
from moe_core.engine.events import Failed
from moe_core.engine.sampler import draw, uniform
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.score_edits import ScoreEdits
from moe_core.errors import EngineError, SpecError
from tests.moe_core.engine.conftest import Run, serve_spec

PLAIN = SamplingParams(max_tokens=8, temperature=1.0)
LOGITS = torch.tensor([0.5, 2.0, -1.0, 3.0, 0.0, -2.0])
PROMPT = [1, 2]


def edits(answer: list[int], **changes) -> ScoreEdits:
    ids = list(PROMPT)
    made = ScoreEdits(replace(PLAIN, **changes), ids, vocab_size=6, end_ids=[5])
    ids += answer
    return made


def by_the_formula(answer: list[int], *, repetition=1.0, frequency=0.0, presence=0.0) -> list[float]:
    """Token by token, without tensors."""
    wanted = []
    for token_id, score in enumerate(LOGITS.tolist()):
        if token_id in PROMPT + answer:
            score = score / repetition if score > 0 else score * repetition
        count = answer.count(token_id)
        wanted.append(score - frequency * count - presence * (count > 0))
    return wanted


@pytest.mark.parametrize("answer", [[], [3], [3, 3, 0, 2], [1, 1, 1, 4]])
def test_penalties_follow_their_formulas(answer) -> None:
    made = edits(answer, repetition_penalty=1.7, frequency_penalty=0.4, presence_penalty=-0.9)
    wanted = by_the_formula(answer, repetition=1.7, frequency=0.4, presence=-0.9)
    assert made.applied(LOGITS).tolist() == pytest.approx(wanted)


def test_penalties_are_the_same_told_step_by_step_or_at_once() -> None:
    ids, options = list(PROMPT), {"frequency_penalty": 0.3, "repetition_penalty": 1.2}
    stepwise = ScoreEdits(replace(PLAIN, **options), ids, vocab_size=6, end_ids=[5])
    for token_id in (3, 0, 3):
        stepwise.applied(LOGITS)
        ids.append(token_id)
    assert torch.equal(stepwise.applied(LOGITS), edits([3, 0, 3], **options).applied(LOGITS))


def test_bias_is_added_and_the_model_s_scores_stay() -> None:
    before = LOGITS.clone()
    made = edits([], logit_bias=((4, 100.0), (3, -2.5))).applied(LOGITS)
    assert (made - LOGITS).tolist() == [0, 0, 0, -2.5, 100.0, 0]
    assert torch.equal(LOGITS, before)


def test_an_answer_does_not_end_before_its_least_length() -> None:
    options = {"min_tokens": 2, "stop_token_ids": frozenset({3})}
    for answer, barred in (([], True), ([0], True), ([0, 0], False)):
        scores = edits(answer, **options).applied(LOGITS)
        assert (scores[[3, 5]] == -torch.inf).tolist() == [barred, barred]
    assert torch.isfinite(edits([], ignore_eos=True, **options).applied(LOGITS)[5])


def test_a_request_that_forbids_everything_is_told_so() -> None:
    made = ScoreEdits(replace(PLAIN, min_tokens=3), [0], vocab_size=2, end_ids=[0, 1])
    with pytest.raises(EngineError, match="no token may follow"):
        made.applied(torch.tensor([1.0, 2.0]))


def test_min_p_leaves_out_what_is_far_less_likely_than_the_likeliest() -> None:
    # The shares relative to token 3: 0.08, 0.37, 0.02, 1, 0.05, 0.007.
    found = {draw(LOGITS, replace(PLAIN, min_p=0.06), uniform(4, place)) for place in range(3000)}
    assert found == {0, 1, 3}
    assert {draw(LOGITS, replace(PLAIN, min_p=1.0), uniform(4, place)) for place in range(50)} == {3}


def test_a_biased_token_is_said_and_a_banned_one_is_not(llama) -> None:
    run = Run(Engine(serve_spec(), llama))
    plain = run.submit([5, 6, 7], 12)
    pushed = run.submit([5, 6, 7], 4, logit_bias=((42, 100.0),))
    run.until_done()
    banned = run.submit([5, 6, 7], 12, logit_bias=tuple((one, -100.0) for one in run.tokens[plain.id]))
    run.until_done()
    assert run.tokens[pushed.id] == [42] * 4
    assert not set(run.tokens[banned.id]) & set(run.tokens[plain.id])


def test_a_bias_outside_the_vocabulary_is_refused_by_its_number(llama) -> None:
    with pytest.raises(SpecError, match="logit_bias names token 97; the vocabulary has tokens 0 to 96"):
        Run(Engine(serve_spec(), llama)).submit([1], logit_bias=((97, 1.0),))


def test_a_stop_token_outside_the_vocabulary_is_refused_by_its_number(llama) -> None:
    """With min_tokens it would be struck out of scores that do not have it."""
    with pytest.raises(SpecError, match="stop_token_ids names token 97; the vocabulary has tokens 0 to 96"):
        Run(Engine(serve_spec(), llama)).submit([1], 5, stop_token_ids=(97,), min_tokens=2)


def test_an_end_token_that_only_the_tokenizer_has_is_never_said(llama) -> None:
    run = Run(Engine(serve_spec(), llama, end_tokens=(2000,)))
    told = run.submit([5, 6], 4, min_tokens=3)
    run.until_done()
    assert len(run.tokens[told.id]) == 4


def test_edits_that_break_end_their_own_answer_and_no_other(llama, monkeypatch) -> None:
    run = Run(Engine(serve_spec(), llama))
    plain, broken = run.submit([5, 6, 7], 6), run.submit([5, 6, 7], 6, logit_bias=((1, 1.0),))
    assert broken.score_edits is not None
    monkeypatch.setattr(broken.score_edits, "applied", lambda logits_V: logits_V[10**6])
    run.until_done()
    assert len(run.tokens[plain.id]) == 6 and broken.id not in run.tokens
    failed = run.ends[broken.id]
    assert isinstance(failed, Failed) and failed.code == "sampling_failed"


def test_a_strong_frequency_penalty_ends_repetition(llama) -> None:
    run = Run(Engine(serve_spec(), llama))
    plain, varied = (
        run.submit([9, 9, 9], 40),
        run.submit([9, 9, 9], 40, frequency_penalty=2.0, presence_penalty=2.0),
    )
    run.until_done()
    assert len(set(run.tokens[varied.id])) > len(set(run.tokens[plain.id]))


def test_preemption_does_not_change_what_penalties_see(llama) -> None:
    options = {"frequency_penalty": 0.7, "repetition_penalty": 1.3, "temperature": 0.8, "seed": 3}
    wide, narrow = (
        Run(Engine(serve_spec(), llama)),
        Run(Engine(serve_spec(kv_tokens=6 * 16, max_sequences=3), llama)),
    )
    for run in (wide, narrow):
        for start in (1, 30, 60):
            run.submit(list(range(start, start + 18)), 40, **options)
        run.until_done()
    assert narrow.engine.scheduler.num_preemptions > 0
    assert list(narrow.tokens.values()) == list(wide.tokens.values())
