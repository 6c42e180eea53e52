"""The raw ASGI door for /v1 and /v2: OpenAI's API over the deployments of the caller's team.

Not a Django view: a token stream through a view and httpx costs five to ten times its latency. The path decides, never
a URL put together from headers; nobody is answered before it is known who calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from gateway import engines
from gateway.bodies import ChatBody, CompletionBody, TraceBody
from gateway.callers import Callers, Principal
from gateway.completions import Completions
from gateway.database import Database
from gateway.directory import Directory, Target
from gateway.engines import EngineAway
from gateway.errors import ApiError, internal, no_such_model, unavailable
from gateway.http import Call, ClientGone, Receive, Scope, Send
from gateway.meter import Meter
from gateway.parsing import parsed

log = logging.getLogger(__name__)
Answer = Callable[[Call, Principal], Awaitable[None]]

MODEL_PREFIX = "/v1/models/"


class Gateway:
    """The gateway application; owns its pools between start and stop."""

    def __init__(self) -> None:
        self.database = Database()
        self.callers = Callers(self.database)
        self.directory = Directory(self.database)
        self.meter = Meter(self.database)
        self.completions = Completions(self.database, self.callers, self.directory, self.meter)
        self.routes: dict[str, dict[str, Answer]] = {
            "/v1/models": {"GET": self.models, "HEAD": self.models},
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/completions": {"POST": self.complete},
            "/v1/turnout/trace": {"POST": self.trace},
        }

    async def start(self) -> None:
        """Open the pools."""
        await self.database.open()
        self.meter.start()

    async def stop(self) -> None:
        """Close the pools; what was used is written first."""
        await self.meter.stop()
        await self.database.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and stop working on it when its client goes away."""
        call = Call(scope, receive, send, secrets.token_hex(12))
        try:
            await self._answer(call)
        except ApiError as error:
            await self._refuse(call, error)
        except ClientGone:
            log.info("request %s: the client has gone", call.request_id)
        except asyncio.CancelledError:
            # The server stops and its patience is over: say so rather than cut the line.
            with contextlib.suppress(Exception):
                await asyncio.shield(call.refuse(unavailable("The server stops.", code="shutting_down")))
            raise
        except Exception:
            log.exception("request %s failed", call.request_id)
            await self._refuse(call, internal(call.request_id))

    async def _refuse(self, call: Call, error: ApiError) -> None:
        with contextlib.suppress(ClientGone):
            await call.refuse(error)

    async def _answer(self, call: Call) -> None:
        principal = await self.callers.find(call)
        await self._route(call)(call, principal)

    def _route(self, call: Call) -> Answer:
        methods = self.routes.get(call.path)
        if methods is None and call.path.startswith(MODEL_PREFIX):
            methods = {"GET": self.model, "HEAD": self.model}
        if methods is None:
            raise ApiError(404, f"There is nothing at {call.path[:200]}.", code="unknown_url")
        if call.method not in methods:
            allowed = ", ".join(methods)
            raise ApiError(
                405,
                f"{call.path} takes {allowed}.",
                code="method_not_allowed",
                headers=((b"allow", allowed.encode()),),
            )
        return methods[call.method]

    async def models(self, call: Call, principal: Principal) -> None:
        """GET /v1/models: the deployments of the caller's team."""
        targets = await self.directory.all_of(principal.team_id)
        await call.answer(200, {"object": "list", "data": [_model(one, principal) for one in targets]})

    async def model(self, call: Call, principal: Principal) -> None:
        """GET /v1/models/{id}."""
        name = call.path.removeprefix(MODEL_PREFIX)
        if not name or len(name) > 80:
            raise no_such_model(name)
        await call.answer(200, _model(await self.directory.find(principal.team_id, name), principal))

    async def chat(self, call: Call, principal: Principal) -> None:
        """POST /v1/chat/completions."""
        body = parsed(await call.body(), ChatBody)
        await self._until_gone(call, self.completions.answer(call, principal, body, "chat"))

    async def complete(self, call: Call, principal: Principal) -> None:
        """POST /v1/completions."""
        body = parsed(await call.body(), CompletionBody)
        await self._until_gone(call, self.completions.answer(call, principal, body, "text"))

    async def trace(self, call: Call, principal: Principal) -> None:
        """POST /v1/turnout/trace: the routing X-ray of one prompt."""
        body = parsed(await call.body(), TraceBody)
        target = await self.directory.find(principal.team_id, body.model)
        target.must_serve()
        domain = target.checked_domain(body.domain)
        replica = self.directory.choose(target, set())
        assert replica is not None
        try:
            found = await engines.ask(replica, "/trace", {**body.for_engine(), "domain": domain})
        except EngineAway as error:
            self.directory.forget(principal.team_id, target.name)
            raise unavailable("The replica has just ended; ask again.", code="not_ready") from error
        tokens = found.pop("tokens")
        shown = {"tokens": [one["text"] for one in tokens], "token_ids": [one["id"] for one in tokens]}
        await call.answer(200, {"model": target.name, "version": target.version, **shown, **found})

    async def _until_gone(self, call: Call, work: Any) -> None:
        """Do the work while the client is there."""
        doing = asyncio.ensure_future(work)
        going = asyncio.ensure_future(call.gone())
        try:
            await asyncio.wait({doing, going}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done() and not call.finished:
                doing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await doing
                raise ClientGone
            await doing
        finally:
            going.cancel()
            if not doing.done():
                doing.cancel()
                with contextlib.suppress(asyncio.CancelledError, ApiError, ClientGone):
                    await doing


def _model(target: Target, principal: Principal) -> dict[str, Any]:
    return {
        "id": target.name,
        "object": "model",
        "created": target.created,
        "owned_by": principal.team,
        "turnout": {
            "deployment": target.id,
            "version": target.version,
            "revision": target.revision,
            "ready_replicas": len(target.replicas),
            "domains": list(target.domains),
        },
    }


application = Gateway()
