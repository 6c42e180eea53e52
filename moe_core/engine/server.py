"""`python -m moe_core.engine.server SPEC.json`: one engine behind HTTP on a unix socket, until SIGTERM.

Exit codes: 0 drained, 2 the specification is wrong, 3 the model cannot be served, 1 the engine broke.
Each change of state is also one line of JSON on standard output.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core import strict_json
from moe_core.engine import head_start, late_certificates, turns
from moe_core.errors import CheckpointError, MoeCoreError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from moe_core.engine.engine import Engine
    from moe_core.engine.loop import EngineState
    from moe_core.engine.panel_cache import PanelCache
    from moe_core.engine.service import Build, EngineService
    from moe_core.engine.text import TextCodec
    from moe_core.spec import ServeSpec

logger = logging.getLogger("moe_core.engine.server")
EXIT_BROKEN, EXIT_SPEC, EXIT_MODEL = 1, 2, 3
# How long a failed engine stays to tell its parent why, if nobody asks before.
FAILURE_LINGER_S = 2.0


def main(arguments: list[str]) -> int:
    """Serve one specification; the exit code."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    _prepare_process()
    turns.give_way()
    head_start.begin()
    try:
        spec = read_spec(arguments)
    except (MoeCoreError, OSError, strict_json.StrictJsonError) as error:
        say({"event": "failed", "code": type(error).__name__, "message": str(error)})
        return EXIT_SPEC
    from moe_core.engine.panel_cache import PanelCache

    # Before torch: its import and the hash of a panel file go on beside each other.
    panels = PanelCache.of(spec)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(spec, partial(_build, panels)))
    finally:
        if panels is not None:
            panels.close()


def _build(
    panels: PanelCache | None, spec: ServeSpec, tell: Callable[[EngineState], None]
) -> tuple[Engine, TextCodec]:
    from moe_core.engine.loading import build_engine

    try:
        return build_engine(spec, tell, panels)
    finally:
        head_start.end()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which takes half the time for a line of a stream; None, asyncio's own, where it is not installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def read_spec(arguments: list[str]) -> ServeSpec:
    """The ServeSpec in the file that the command line names."""
    from moe_core.spec import ServeSpec

    if len(arguments) != 1:
        raise SpecError("usage: python -m moe_core.engine.server SPEC.json")
    return ServeSpec.parse(strict_json.loads(Path(arguments[0]).read_bytes()))


async def serve(spec: ServeSpec, build: Build) -> int:
    """Answer on the socket from the first moment, load, serve, drain; the exit code."""
    with late_certificates.put_off():
        from aiohttp import web

    from moe_core.engine.service import EngineService

    service = EngineService(spec, build, on_state=lambda state, error: _say_state(spec, state, error))
    runner = web.AppRunner(application(service), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(spec.socket_path)).start()
    terminated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, terminated.set)
    service.start()
    try:
        return await _until_the_end(service, terminated)
    finally:
        service.closing.set()
        await runner.cleanup()
        spec.socket_path.unlink(missing_ok=True)


def application(service: EngineService):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """The aiohttp application over one service."""
    from aiohttp import web

    from moe_core.engine.handlers import MAX_BODY_BYTES, SERVICE, routes
    from moe_core.engine.http_errors import bearer_guard, errors_as_json

    secret_file = service.spec.secret_file
    secret = None if secret_file is None else secret_file.read_text().strip()
    app = web.Application(middlewares=[errors_as_json, bearer_guard(secret)], client_max_size=MAX_BODY_BYTES)
    app[SERVICE] = service
    app.add_routes(routes)
    return app


async def _until_the_end(service: EngineService, terminated: asyncio.Event) -> int:
    waits = [asyncio.ensure_future(terminated.wait()), asyncio.ensure_future(service.failed.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if service.failed.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(FAILURE_LINGER_S):
                await service.failure_seen.wait()
        return EXIT_MODEL if isinstance(service.error, CheckpointError | SpecError) else EXIT_BROKEN
    await service.drain(service.spec.drain_s)
    service.closing.set()
    await service.stop()
    return 0


def _prepare_process() -> None:
    # The socket and whatever else is made here is for this user alone.
    os.umask(0o077)
    # The engine's thread and the HTTP thread share the interpreter: hand it over quickly.
    sys.setswitchinterval(0.0005)
    # Read when libgomp is loaded with torch: waiting threads sleep, so that a shared core is not spun away.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _say_state(spec: ServeSpec, state: str, error: BaseException | None) -> None:
    value: dict[str, object] = {
        "event": "state",
        "state": str(state),
        "version": spec.version,
        "epoch": spec.epoch,
    }
    if error is not None:
        value |= {"code": type(error).__name__, "message": str(error)}
    say(value)


def say(value: dict[str, object]) -> None:
    """One line on standard output for the parent."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
