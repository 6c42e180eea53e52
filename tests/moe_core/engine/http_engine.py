"""An engine service with a real socket and a client for it, inside the test's own process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from moe_core.engine.loading import build_engine
from moe_core.engine.loop import EngineState
from moe_core.engine.server import application
from moe_core.engine.service import EngineService
from moe_core.spec import ServeSpec


class Client:
    """Speaks to one engine."""

    def __init__(self, service: EngineService, session: aiohttp.ClientSession) -> None:
        self.service = service
        self.session = session

    async def get(self, path: str) -> Any:
        async with self.session.get(f"http://engine{path}") as response:
            return await response.json()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(f"http://engine{path}", json=body) as response:
            return response.status, await response.json()

    async def generate(self, **body: Any) -> list[dict[str, Any]]:
        async with self.session.post("http://engine/generate", json=body) as response:
            text = await response.text()
            assert response.status == 200, text
            return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def running_engine(
    model_dir: Path, socket_dir: Path, *, headers: dict[str, str] | None = None, **changes: Any
) -> AsyncIterator[Client]:
    """Load, wait until ready, serve, drain."""
    fields = {
        "model_dir": model_dir,
        "socket_path": socket_dir / "e.sock",
        "dtype": "float32",
        "kv_tokens": 4096,
    }
    spec = ServeSpec(**(fields | changes))
    loaded = asyncio.Event()

    def note_state(state: EngineState, error: BaseException | None) -> None:
        if state in (EngineState.READY, EngineState.FAILED):
            loaded.set()

    service = EngineService(spec, build_engine, note_state)
    runner = web.AppRunner(application(service), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(spec.socket_path)).start()
    service.start()
    connector = aiohttp.UnixConnector(str(spec.socket_path))
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        client = Client(service, session)
        try:
            await asyncio.wait_for(loaded.wait(), 60)
            assert service.accepts, service.error
            yield client
            await service.drain(5.0)
        finally:
            service.closing.set()
            await service.stop()
            await runner.cleanup()


def answer_of(lines: list[dict[str, Any]]) -> tuple[str, list[int]]:
    """The text and the tokens of a stream."""
    deltas = [line for line in lines if line["type"] == "delta"]
    return "".join(line["text"] for line in deltas), [token for line in deltas for token in line["token_ids"]]
