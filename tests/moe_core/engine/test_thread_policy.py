"""Decoding steps use fewer threads where fewer are quicker, and find the way back; what a step takes is made up here."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

import pytest
import torch

from moe_core.engine.detokenizer import Detokenizer
from moe_core.engine.engine import Engine
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.scheduler import Chunk
from moe_core.engine.sequence import Sequence
from moe_core.engine.step_costs import StepCosts
from moe_core.engine.thread_policy import (
    FIRST_PAUSE_S,
    LAST_PAUSE_S,
    STRETCH_STEPS,
    StepThreads,
    ThreadPolicy,
    Trial,
)
from moe_core.kernels.cpu.native import library
from moe_core.spec import ModelSpec
from tests.moe_core.engine.conftest import MOE, TINY, PlainStream, Run
from tests.moe_core.engine.native_models import SPECS, build, engine_of

needs_kernels = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
Cost = Callable[[int], tuple[float, float]]


def quiet(threads: int) -> tuple[float, float]:
    """Seconds of a step, and those of them lost to others."""
    return 0.016 / threads**0.8, 0.0


def crowded(threads: int) -> tuple[float, float]:
    return 0.015 + 0.009 * (threads - 1), 0.006 * threads


def contended_but_better(threads: int) -> tuple[float, float]:
    return 0.060 / threads, 0.020 / threads


class Machine:
    """A clock that the made-up steps move on."""

    def __init__(self, policy: ThreadPolicy) -> None:
        self.policy, self.now = policy, 100.0
        self.used: list[int] = []
        self.seconds = 0.0

    def decode(self, cost: Cost, for_s: float, *, num_tokens: Callable[[int], int] = lambda _: 1) -> None:
        self.used, self.seconds = [], 0.0
        while self.seconds < for_s:
            threads = self.policy.threads
            seconds, lost = cost(threads)
            self.now += seconds
            self.seconds += seconds
            self.used.append(threads)
            self.policy.note(self.now, seconds, lost, num_tokens(len(self.used)))


def test_on_a_quiet_machine_nothing_is_tried() -> None:
    machine = Machine(ThreadPolicy(2))
    machine.decode(quiet, 120.0)
    assert set(machine.used) == {2}


def test_beside_busy_neighbours_it_takes_one_thread_and_tries_ever_more_rarely() -> None:
    machine = Machine(ThreadPolicy(2))
    machine.decode(crowded, 2.0)
    assert machine.policy.present == 1
    machine.decode(crowded, 300.0)
    assert machine.policy.present == 1
    assert 0 < machine.used.count(2) / len(machine.used) < 0.03
    # Never longer without a look than the longest pause, a trial's length aside.
    longest = max(len(alone) for alone in "".join(map(str, machine.used)).split("2"))
    assert longest * crowded(1)[0] < LAST_PAUSE_S + 2.0


def test_all_threads_stay_where_they_are_quicker_though_much_is_lost() -> None:
    machine = Machine(ThreadPolicy(2))
    machine.decode(contended_but_better, 300.0)
    assert machine.policy.present == 2
    assert 0 < machine.used.count(1) / len(machine.used) < 0.03


def test_when_the_neighbours_leave_it_is_back_soon() -> None:
    machine = Machine(ThreadPolicy(2))
    machine.decode(crowded, 200.0)
    assert machine.policy.present == 1
    machine.decode(quiet, FIRST_PAUSE_S + 2.0)
    assert machine.policy.present == 2
    machine.decode(quiet, 100.0)
    assert set(machine.used) == {2}


@pytest.mark.parametrize("step_s", [0.006, 0.016, 0.030])
def test_who_comes_by_once_makes_it_try_nothing(step_s: float) -> None:
    """A pause of 40 ms now and then, at an engine's first steps too: a trial would take longer than what was lost."""
    machine = Machine(ThreadPolicy(2))
    steps = count()

    def interrupted(threads: int) -> tuple[float, float]:
        pause = 0.04 if next(steps) % 50 == 1 else 0.0
        return step_s * (1.8 if threads == 1 else 1.0) + pause, pause

    machine.decode(interrupted, 120.0)
    assert set(machine.used) == {2}


def test_a_neighbour_that_takes_nearly_all_is_noticed() -> None:
    """However much of a step is lost, it tells of a machine that is busy."""
    machine = Machine(ThreadPolicy(2))
    machine.decode(lambda threads: (0.1 * threads, 0.1 * threads - 0.006), 10.0)
    assert machine.policy.present == 1


def test_a_trial_ends_when_its_verdict_is_certain() -> None:
    """Three pairs of six lost: fewer threads can win no more, and an answer is not kept on them any longer."""
    machine = Machine(ThreadPolicy(2))
    while machine.policy.trial is None:
        machine.decode(contended_but_better, 0.0001)
    machine.decode(contended_but_better, 1.0)
    assert machine.policy.trial is None
    assert machine.used.count(1) == 3 * STRETCH_STEPS


def test_noise_alone_does_not_make_it_change() -> None:
    noise = random.Random(0)

    def alike(threads: int) -> tuple[float, float]:
        seconds = 0.015 * noise.lognormvariate(0.0, 0.3)
        return seconds, seconds / 3

    machine = Machine(ThreadPolicy(2))
    presents = []
    for _ in range(600):
        machine.decode(alike, 1.0)
        presents.append(machine.policy.present)
    changes = sum(a != b for a, b in pairwise(presents))
    assert changes < 25


def test_of_many_threads_the_best_number_in_between_is_found() -> None:
    def four_free(threads: int) -> tuple[float, float]:
        return 0.032 / min(threads, 4) + 0.004 * max(0, threads - 4), 0.02 * (threads > 4)

    machine = Machine(ThreadPolicy(16))
    machine.decode(four_free, 30.0)
    assert machine.policy.present == 4
    assert max(machine.used) == 16
    machine.decode(four_free, 200.0)
    assert machine.policy.present == 4


@pytest.mark.parametrize(("most", "numbers"), [(1, {1}), (2, {1, 2}), (6, {1, 3, 6}), (8, {1, 2, 4, 8})])
def test_never_more_than_the_deployments_threads(most: int, numbers: set[int]) -> None:
    noise = random.Random(most)
    machine = Machine(ThreadPolicy(most))
    machine.decode(lambda threads: (0.01 * noise.uniform(0.3, 3.0), 0.004), 100.0)
    assert set(machine.used) <= numbers


def test_steps_of_other_sizes_are_not_compared() -> None:
    """Each step has twice the tokens, and the time, of the last but one: no verdict comes of it, and trials end."""
    machine = Machine(ThreadPolicy(2))
    machine.decode(crowded, 60.0, num_tokens=lambda step: step % 2 + 1)
    assert machine.policy.present == 2
    assert machine.policy.trial is None or machine.now - 100.0 < 60.0


WIDE = {
    **TINY,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "head_dim": 32,
    "vocab_size": 997,
}
MODELS = {
    **SPECS,
    "wide": ModelSpec.parse(
        {"family": "mixtral", "moe": {**MOE, "num_experts": 8, "moe_intermediate_size": 256}, **WIDE}
    ),
}


@needs_kernels
@pytest.mark.parametrize("bits", [None, (8, 8, 8), (4, None, None)], ids=["16 bits", "8 bits", "4 bits"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_to_the_bit_those_of_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, name: str, bits: tuple[int | None, ...] | None
) -> None:
    """Logits of prompts and of decoding steps alone and together, whichever thread took which unit.

    Without guesses: how many rows a step has of them is decided by the clock, though no answer is.
    """
    if bits is not None and MODELS[name].moe is None:
        pytest.skip("a dense model has no experts to pack")
    engine = engine_of(build(MODELS[name], bits), monkeypatch, ngram_tokens=0)
    native = library()
    assert engine.runner.native is not None and native is not None
    found = {}
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            found[threads] = _logits(engine)
    finally:
        native.set_threads(1)
    for threads in (2, 5):
        assert len(found[threads]) == len(found[1]) > 8
        for one, other in zip(found[1], found[threads], strict=True):
            assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def _logits(engine: Engine) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    plain = engine.runner.run

    def kept(*told: Any, **options: Any) -> torch.Tensor:
        logits_BV = plain(*told, **options)
        found.append(logits_BV.clone())
        return logits_BV

    engine.pool.forget_all()
    run = Run(engine)
    engine.runner.run = kept  # type: ignore[method-assign]
    try:
        for number, length in enumerate((3, 40, 90)):
            run.submit(
                [(7 * place + number) % 90 + 3 for place in range(length)], 4 + 3 * number, ignore_eos=True
            )
        run.until_done()
    finally:
        engine.runner.run = plain  # type: ignore[method-assign]
    return found


@needs_kernels
def test_decoding_steps_run_on_what_the_policy_says_and_prompts_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(build(MODELS["mixtral"]), monkeypatch, num_threads=3)
    native = library()
    assert engine.runner.threads is not None and native is not None
    policy = engine.runner.threads.policy
    assert (policy.most, engine.runner.decode_threads) == (3, 3)
    policy.present, policy._next_trial_at = 1, float("inf")
    used: list[tuple[bool, int]] = []
    plain = engine.runner._step

    def noted(chunks: list[Chunk]) -> torch.Tensor:
        used.append((any(chunk.num_tokens > 1 for chunk in chunks), native.num_threads))
        return plain(chunks)

    engine.runner._step = noted  # type: ignore[method-assign,assignment]
    run = Run(engine)
    try:
        run.submit(list(range(3, 40)), 6, ignore_eos=True)
        run.until_done()
        assert used == [(True, 3), *[(False, 1)] * 5]
        assert engine.stats.snapshot(engine).decode_threads == 1
    finally:
        native.set_threads(1)


@needs_kernels
def test_a_trial_tells_nothing_of_what_steps_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it runs on fewer threads: guesses would be believed cheaper than they are after it."""
    engine = engine_of(build(MODELS["mixtral"]), monkeypatch, num_threads=2)
    native = library()
    assert engine.runner.threads is not None and native is not None
    told: list[int] = []
    monkeypatch.setattr(engine.runner.costs, "note", lambda num_tokens, _seconds: told.append(num_tokens))
    run = Run(engine)
    try:
        engine.runner.threads.policy.trial = Trial(1, 2)
        run.submit(list(range(3, 40)), 6, ignore_eos=True)
        run.until_done()
        assert told == []
        engine.runner.threads.policy.trial = None
        run.submit(list(range(3, 40)), 6, ignore_eos=True)
        run.until_done()
        assert told == [1] * 5
    finally:
        native.set_threads(1)


@needs_kernels
def test_steps_with_guesses_are_decoding_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    native = library()
    assert native is not None
    noted: list[int] = []
    threads = StepThreads(native, 2, StepCosts())
    monkeypatch.setattr(threads.policy, "note", lambda *told: noted.append(told[3]))
    sequence = Sequence(
        id=1, request_id="", token_ids=[5, 6, 7], num_prompt_tokens=2, sampling=SamplingParams(max_tokens=4),
        detokenizer=Detokenizer(PlainStream(), ()),
    )  # fmt: skip
    try:
        threads.run([Chunk(sequence, 2, 6, drafts=(1, 2, 3))], lambda _: torch.zeros(1))
        threads.run([Chunk(sequence, 0, 3)], lambda _: torch.zeros(1))
        threads.run([Chunk(sequence, 0, 1)], lambda _: torch.zeros(1))
    finally:
        native.set_threads(1)
    # Told as a step of its one sequence.
    assert noted == [1]


def test_one_thread_leaves_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(build(MODELS["mixtral"]), monkeypatch)
    assert engine.runner.threads is None
    assert engine.runner.decode_threads == 1
