"""Speaking to engines: aiohttp over their unix sockets, one pool of connections a socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from gateway.directory import ReplicaAddress
from gateway.errors import ApiError, from_engine, unavailable

CONNECT_S = 2.0
# The longest silence: waiting for a place in the batch, or one long step.
SILENCE_S = 60.0
TOTAL_S = 900.0
IDLE_POOL_S = 60.0
MAX_LINE_BYTES = 32 << 20
TIMEOUT = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)
# What an engine says before it has done anything: another replica may take the request.
ELSEWHERE = ("not_ready", "draining", "stale_epoch")


class EngineAway(Exception):
    """This replica cannot take the request; nothing was begun."""


class Stream:
    """An engine's answer, line by line."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events to the last one.

        Raises:
            ApiError: when the engine dies, falls silent or says an error.
        """
        rest = b""
        try:
            async for data in self._response.content.iter_any():
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield _event(line)
                if len(rest) > MAX_LINE_BYTES:
                    raise unavailable("The engine's answer could not be read.", code="engine_lost")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _lost(error) from error
        raise unavailable("The engine ended before the answer was complete.", code="engine_lost")

    def close(self) -> None:
        """Hang up; the engine ends the sequence at its next step."""
        self._response.close()


class Engines:
    """The pools."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[aiohttp.ClientSession, float]] = {}

    async def close(self) -> None:
        """Close every pool."""
        for session, _used in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def generate(self, replica: ReplicaAddress, body: dict[str, Any]) -> Stream:
        """Begin an answer.

        Raises:
            EngineAway: when another replica should be asked.
            ApiError: when the request is at fault, or the engine is full.
        """
        response = await self._post(replica, "/generate", {**body, "epoch": replica.epoch})
        return Stream(response)

    async def ask(self, replica: ReplicaAddress, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask for one JSON object."""
        response = await self._post(replica, path, body)
        try:
            value = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _lost(error) from error
        finally:
            response.release()
        if not isinstance(value, dict):
            raise unavailable("The engine's answer could not be read.", code="engine_lost")
        return value

    async def _post(self, replica: ReplicaAddress, path: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
        session = await self._session(replica.address)
        try:
            response = await session.post(f"http://engine{path}", json=body, timeout=TIMEOUT)
        except (aiohttp.ClientConnectorError, FileNotFoundError, ConnectionRefusedError) as error:
            raise EngineAway(str(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _lost(error) from error
        if response.status == 200:
            return response
        raise await _refusal(response)

    async def _session(self, address: str) -> aiohttp.ClientSession:
        now = time.monotonic()
        for known, (session, used) in list(self._sessions.items()):
            if known != address and now - used > IDLE_POOL_S + TOTAL_S:
                del self._sessions[known]
                await session.close()
        found = self._sessions.get(address)
        if found is None:
            connector = aiohttp.UnixConnector(address, limit=0, keepalive_timeout=15)
            session = aiohttp.ClientSession(connector=connector, json_serialize=_dumps)
        else:
            session = found[0]
        self._sessions[address] = (session, now)
        return session


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def _refusal(response: aiohttp.ClientResponse) -> ApiError | EngineAway:
    try:
        error = json.loads(await response.read())["error"]
        code, message = str(error["code"]), str(error["message"])
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
        return unavailable("The engine's answer could not be read.", code="engine_lost")
    finally:
        response.release()
    if code in ELSEWHERE:
        return EngineAway(message)
    wait = response.headers.get("Retry-After", "")
    return from_engine(response.status, code, message, int(wait) if wait.isdigit() else None)


def _event(line: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(line)
    if value["type"] == "error":
        raise from_engine(503, str(value["code"]), str(value["message"]))
    return value


def _lost(error: BaseException) -> ApiError:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return ApiError(
            504,
            "The engine did not answer in time.",
            type="server_error",
            code="engine_timeout",
            retry_after_s=2,
        )
    return unavailable("The engine ended before the answer was complete.", code="engine_lost")
