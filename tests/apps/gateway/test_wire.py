"""The gateway's own HTTP to engines: however its bytes are cut, and however it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from gateway import engines, wire
from gateway.directory import ReplicaAddress
from gateway.engines import EngineAway, event_of
from gateway.errors import ApiError
from gateway.framing import Body, WireError, head_of
from gateway.wire import Wire

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@contextlib.asynccontextmanager
async def engine(folder: Path, speak: Speak) -> AsyncIterator[ReplicaAddress]:
    """A server that reads a request and answers as it is told."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        with contextlib.suppress(ConnectionError):
            await speak(reader, writer)
        writer.close()

    path = str(folder / "e.sock")
    server = await asyncio.start_unix_server(one, path)
    try:
        yield ReplicaAddress(1, 1, path)
    finally:
        server.close()
        # What is still being closed.
        await asyncio.sleep(0.02)


def says(*parts: bytes) -> Speak:
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)

    return speak


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def plain(status: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), more, body)


async def told(address: ReplicaAddress) -> list[dict]:
    stream = await engines.generate(address, {"prompt": "x"})
    try:
        return [event_of(line) async for line in stream.lines()]
    finally:
        stream.close()


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(0, 500), max_size=12),
    st.booleans(),
)
def test_however_a_body_is_cut_the_same_bytes_come_out(chunks, cuts, is_chunked):
    whole = b"".join(chunks)
    framed = b"".join(map(chunk, chunks)) + b"0\r\n\r\n" if is_chunked else whole
    body = Body({"transfer-encoding": "chunked"} if is_chunked else {"content-length": str(len(whole))})
    at, found = 0, b""
    for cut in [*sorted(min(cut, len(framed)) for cut in cuts), len(framed)]:
        if not body.is_complete:
            found += body.feed(framed[at:cut])
            at = cut
    assert found == whole
    assert body.is_complete


def test_a_long_chunk_is_put_together_in_time_that_grows_with_its_length_alone():
    data = bytes(range(256)) * (32 << 10)
    framed, body = chunk(data) + b"0\r\n\r\n", Body({"transfer-encoding": "chunked"})
    copied = 0

    class Counted(bytearray):
        def __iadd__(self, more: bytes) -> Counted:
            nonlocal copied
            copied += len(more)
            return super().__iadd__(more)

    body._kept = Counted()
    found = b"".join(body.feed(framed[at : at + 4096]) for at in range(0, len(framed), 4096))
    assert found == data and copied <= len(framed)


@pytest.mark.parametrize(
    "framed", [b"zz\r\nab\r\n", b"2\r\nabcd\r\n", b"-1\r\n", b"ffffffffff\r\n", b"\r\nabc\r\n"]
)
def test_broken_chunks_are_no_answer(framed):
    with pytest.raises(WireError):
        Body({"transfer-encoding": "chunked"}).feed(framed)


@pytest.mark.parametrize("data", [b"SSH-2.0-x", b"HTTP/1.1 abc", b"HTTP/2 200", b""])
def test_what_does_not_begin_like_an_answer_is_none(data):
    with pytest.raises(WireError):
        head_of(data)


def test_an_answer_without_any_framing_is_none():
    with pytest.raises(WireError):
        Body({})


async def test_events_come_in_their_order_and_the_end_is_not_taken_for_one_that_is_missing(tmp_path):
    lines = [b'{"type":"delta","text":"\xe6\x97\xa5"}\n{"type":"del', b'ta","text":"b"}\n']
    async with engine(
        tmp_path, says(CHUNKED[:20], CHUNKED[20:] + chunk(lines[0]), chunk(lines[1]))
    ) as address:
        stream = await engines.generate(address, {})
        found = []
        with pytest.raises(ApiError) as refused:
            async for line in stream.lines():
                found.append(event_of(line)["text"])
        stream.close()
    assert found == ["日", "b"]
    assert refused.value.code == "engine_lost"


async def test_the_request_is_what_an_engine_reads(tmp_path):
    heard = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        heard.append(await reader.readexactly(len('{"text":"日"}'.encode())))
        writer.write(plain(b"200 OK", b'{"ids":[1]}'))
        writer.close()

    server = await asyncio.start_unix_server(one, str(tmp_path / "e.sock"))
    address = ReplicaAddress(1, 1, str(tmp_path / "e.sock"))
    assert await engines.ask(address, "/tokenize", {"text": "日"}) == {"ids": [1]}
    server.close()
    assert heard[0].startswith(b"POST /tokenize HTTP/1.1\r\nHost: engine\r\n")
    assert heard[1].decode() == '{"text":"日"}'


async def test_where_nobody_listens_another_replica_is_asked(tmp_path):
    (tmp_path / "f.sock").touch()
    for name in ("none.sock", "f.sock"):
        with pytest.raises(EngineAway):
            await engines.generate(ReplicaAddress(1, 1, str(tmp_path / name)), {})


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (plain(b"503 No", b'{"error":{"code":"draining","message":"x"}}'), EngineAway, None),
        (
            plain(b"429 No", b'{"error":{"code":"engine_busy","message":"x"}}', b"Retry-After: 7\r\n"),
            ApiError,
            "engine_busy",
        ),
        (plain(b"500 No", b"<html>"), ApiError, "engine_lost"),
        (b"HTTP/1.1 200 OK\r\n\r\n", ApiError, "engine_lost"),
        (b"nonsense\r\n\r\n", ApiError, "engine_lost"),
        (b"HTTP/1.1 200 OK\r\nContent-", ApiError, "engine_lost"),
        (b"", ApiError, "engine_lost"),
    ],
)
async def test_what_is_no_answer_is_told_as_what_it_is(tmp_path, answer, kind, code):
    async with engine(tmp_path, says(answer)) as address:
        with pytest.raises(kind) as told_of:
            await engines.generate(address, {})
    if code is not None:
        assert told_of.value.code == code
    if code == "engine_busy":
        assert told_of.value.retry_after_s == 7


@pytest.mark.parametrize("rest", [b"", b"5\r\nab", b"zz\r\n"])
async def test_an_engine_that_dies_or_stutters_in_the_middle_is_lost(tmp_path, rest):
    async with engine(tmp_path, says(CHUNKED + chunk(b'{"type":"start"}\n') + rest)) as address:
        with pytest.raises(ApiError) as lost:
            await told(address)
    assert lost.value.code == "engine_lost"


@pytest.mark.parametrize("limit", ["SILENCE_S", "TOTAL_S"])
async def test_silence_and_length_have_an_end(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(wire, "SILENCE_S", 0.3 if limit == "SILENCE_S" else 0.1)
    monkeypatch.setattr(wire, "TOTAL_S", 0.5 if limit == "TOTAL_S" else 60.0)
    pause_s = 5.0 if limit == "SILENCE_S" else 0.02

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _ in range(int(10 / pause_s)):
            writer.write(chunk(b'{"type":"start"}\n'))
            await writer.drain()
            await asyncio.sleep(pause_s)

    async with engine(tmp_path, speak) as address:
        with pytest.raises(ApiError) as late:
            await asyncio.wait_for(told(address), timeout=10)
    assert late.value.code == "engine_timeout"


async def test_who_is_slow_to_read_holds_the_engine_up_and_is_not_taken_for_its_silence(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(wire, "SILENCE_S", 0.2)
    line, sent = b'{"type":"start","x":"%b"}\n' % (b"a" * 60_000), 0

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        for _ in range(100):
            writer.write(chunk(line))
            await writer.drain()
            sent += len(line)

    async with engine(tmp_path, speak) as address:
        stream = await engines.generate(address, {})
        lines = stream.lines()
        assert event_of(await anext(lines))["type"] == "start"
        await asyncio.sleep(0.7)
        held = sent
        assert held < 100 * len(line) / 2
        rest = 1
        with pytest.raises(ApiError):
            async for _ in lines:
                rest += 1
        stream.close()
    assert rest == 100


async def test_to_close_hangs_up_and_leaves_nothing_behind(tmp_path):
    gone = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunk(b'{"type":"start"}\n'))
        await reader.read()
        gone.set()

    async with engine(tmp_path, speak) as address:
        opened = await Wire.opened(address.address)
        await opened.post("/generate", b"{}")
        assert await opened.part() == b'{"type":"start"}\n'
        waiting = asyncio.ensure_future(opened.part())
        await asyncio.sleep(0.01)
        opened.close()
        with pytest.raises(OSError):
            await waiting
        await asyncio.wait_for(gone.wait(), 5)
        assert opened._timer.cancelled()
