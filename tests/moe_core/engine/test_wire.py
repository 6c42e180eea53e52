"""What a reader gets when it was not waiting: one line a sequence, with nothing lost, and no oftener than it asked for."""

from __future__ import annotations

import asyncio
import json

from moe_core.engine.events import Delta, Done, Started
from moe_core.engine.sampler import TokenLogprob
from moe_core.engine.sequence import FinishReason
from moe_core.engine.service import Mailbox
from moe_core.engine.wire import line, merged
from tests.moe_core.engine.http_engine import answer_of, running_engine
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir


def delta(sequence_id: int, token_id: int) -> Delta:
    return Delta(sequence_id, f"{token_id} ", (token_id,), (TokenLogprob(token_id, -1.0, ()),))


def test_the_deltas_of_each_sequence_become_one_and_stay_before_its_end() -> None:
    done = Done(1, FinishReason.STOP, 3, 0, 2)
    events = [Started(1, 3, 0), delta(1, 5), delta(2, 7), delta(1, 6), done, delta(2, 8)]
    assert merged(events) == [
        Started(1, 3, 0),
        Delta(1, "5 6 ", (5, 6), (TokenLogprob(5, -1.0, ()), TokenLogprob(6, -1.0, ()))),
        done,
        Delta(2, "7 8 ", (7, 8), (TokenLogprob(7, -1.0, ()), TokenLogprob(8, -1.0, ()))),
    ]
    assert merged([delta(1, 5)]) == [delta(1, 5)]


def test_a_line_is_plain_utf8() -> None:
    value = {"text": 'zug \u2028 车\n"', "ids": [1, 2]}
    assert line(value) == b'{"text":"zug \xe2\x80\xa8 \xe8\xbd\xa6\\n\\"","ids":[1,2]}\n'
    assert json.loads(line(value)) == value


async def test_a_patient_reader_is_woken_by_the_first_text_and_by_the_end() -> None:
    mailbox = Mailbox(every_s=3600)
    mailbox.put(delta(1, 5))
    assert await mailbox.take() == [delta(1, 5)]
    waiting = asyncio.create_task(mailbox.take())
    mailbox.put(delta(1, 6))
    mailbox.put(delta(1, 7))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    done = Done(1, FinishReason.STOP, 3, 0, 3)
    mailbox.put(done)
    assert await waiting == [delta(1, 6), delta(1, 7), done]


async def test_text_that_is_kept_back_comes_in_time_though_nothing_follows() -> None:
    mailbox = Mailbox(every_s=0.05)
    mailbox.put(delta(1, 5))
    await mailbox.take()
    mailbox.put(delta(1, 6))
    async with asyncio.timeout(10):
        assert await mailbox.take() == [delta(1, 6)]


async def test_text_may_be_kept_back_any_number_of_times() -> None:
    mailbox = Mailbox(every_s=0.05)
    mailbox.put(delta(1, 5))
    await mailbox.take()
    for token_id in (6, 7, 8):
        mailbox.put(delta(1, token_id))
        async with asyncio.timeout(10):
            assert await mailbox.take() == [delta(1, token_id)]


async def test_nobody_is_woken_for_text_that_was_taken_with_something_else() -> None:
    mailbox = Mailbox(every_s=0.05)
    mailbox.put(delta(1, 5))
    await mailbox.take()
    mailbox.put(delta(1, 6))
    mailbox.put(Started(2, 3, 0))
    assert await mailbox.take() == [delta(1, 6), Started(2, 3, 0)]
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0.15)
    assert not waiting.done()
    mailbox.put(delta(1, 7))
    assert await waiting == [delta(1, 7)]


async def test_the_first_text_comes_at_once_though_the_start_was_taken_before() -> None:
    mailbox = Mailbox(every_s=3600)
    mailbox.put(Started(1, 3, 0))
    assert await mailbox.take() == [Started(1, 3, 0)]
    mailbox.put(delta(1, 5))
    async with asyncio.timeout(10):
        assert await mailbox.take() == [delta(1, 5)]


async def test_an_interval_changes_the_lines_and_not_the_answer(tmp_path) -> None:
    write_model_dir(tmp_path / "model", tiny_model())
    async with running_engine(tmp_path / "model", tmp_path) as engine:
        body = {"prompt": "hello", "max_tokens": 40, "ignore_eos": True}
        each = await engine.generate(**body)
        few = await engine.generate(**body, stream_interval_ms=10_000)
    assert answer_of(few) == answer_of(each)
    assert [one["type"] for one in few][-2:] == ["delta", "done"]
    assert len(few) <= 4
    assert few[-1]["usage"]["completion_tokens"] == 40
