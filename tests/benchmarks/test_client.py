"""The client reads all three dialects as servers really send them, and refuses an answer that is too short."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.client import ClientError, Endpoint, complete, together
from benchmarks.fronts.serving import Inbox, serve
from benchmarks.peers.server import free_port

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Counting:
    """Answers each prompt with the numbers after its last token."""

    def run(self, inbox: Inbox) -> None:
        while True:
            for wanted in inbox.take(wait=True):
                for step in range(wanted.new):
                    wanted.emit([wanted.prompt[-1] + step + 1])


@pytest.fixture(scope="module")
def port() -> int:
    import threading
    import time

    found = free_port()
    threading.Thread(target=serve, args=(Counting(), found), daemon=True).start()
    for _ in range(1000):
        try:
            asyncio.run(complete(Endpoint("openai", found), [1], 1))
            break
        except OSError:
            time.sleep(0.01)
    return found


def test_a_streamed_answer_has_its_tokens_and_times(port: int) -> None:
    firsts = []
    answer = asyncio.run(complete(Endpoint("openai", port), [5, 7], 4, on_first=lambda: firsts.append(1)))
    assert (answer.token_ids, answer.num_tokens, firsts) == ([8, 9, 10, 11], 4, [1])
    assert 0 < answer.first_s <= answer.last_s


def test_requests_that_run_together_are_not_mixed_up(port: int) -> None:
    answers = asyncio.run(together(Endpoint("openai", port), [[10 * n] for n in range(8)], 3))
    assert [answer.token_ids for answer in answers] == [
        [10 * n + 1, 10 * n + 2, 10 * n + 3] for n in range(8)
    ]


async def _against(pieces: list[bytes], head: bytes, endpoint: Endpoint, new: int) -> tuple[object, bytes]:
    """The client's answer from a server that sends these pieces, and what the client had asked."""
    asked = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(lines.split("content-length: ")[1].split("\r\n")[0])
        asked.set_result(await reader.readexactly(length))
        writer.write(head)
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", endpoint.port)
    try:
        return await complete(endpoint, [1, 2], new), await asked
    finally:
        server.close()


OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_events_may_be_cut_anywhere() -> None:
    whole = (
        b"".join(
            b"data: " + json.dumps({"content": text, "tokens": [number], "stop": False}).encode() + b"\n\n"
            for number, text in ((3, "a"), (4, "b"))
        )
        + b'data: {"content": "", "tokens": [], "stop": true, "tokens_predicted": 2}\n\n'
    )
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    answer, asked = asyncio.run(_against(pieces, OK, Endpoint("llama", free_port()), 2))
    assert (answer.token_ids, answer.text) == ([3, 4], "ab")  # type: ignore[attr-defined]
    told = json.loads(asked)
    assert told["n_predict"] == 2 and told["cache_prompt"] is False and told["ignore_eos"] is True


def test_the_engines_lines_are_read() -> None:
    lines = [
        b'{"type": "start", "prompt_tokens": 2}\n',
        b'{"type": "delta", "text": "x", "token_ids": [7, 8]}\n',
    ]
    answer, asked = asyncio.run(_against(lines, OK, Endpoint("engine", free_port()), 2))
    assert answer.token_ids == [7, 8]  # type: ignore[attr-defined]
    assert json.loads(asked)["prompt_ids"] == [1, 2]


def test_an_answer_of_another_length_is_refused() -> None:
    lines = [b'{"type": "delta", "text": "x", "token_ids": [7]}\n']
    with pytest.raises(ClientError, match="2 tokens were asked for, 1 came"):
        asyncio.run(_against(lines, OK, Endpoint("engine", free_port()), 2))


def test_a_refusal_is_told_with_what_the_server_said() -> None:
    with pytest.raises(ClientError, match="(?s)429.*slow down"):
        asyncio.run(
            _against([b"slow down"], OK.replace(b"200 OK", b"429 No"), Endpoint("engine", free_port()), 1)
        )
