"""One uvicorn, three doors: the raw gateway for /v1 and /v2, Channels for sockets, Django for the rest.

A Django view costs 0.8 ms behind its WSGI handler and 2.3 ms or more behind its ASGI handler; a token stream through a
bare ASGI application costs 45 µs. So each kind of traffic gets the door that fits it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from config.wsgi import application as django_pages  # isort: skip  (sets Django up before anything below is imported)

from a2wsgi import WSGIMiddleware
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.sessions import SessionMiddlewareStack

from common.body_limit import BodyLimit
from common.live import hub
from config.sockets import websocket_urlpatterns
from gateway.asgi import application as gateway

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# a2wsgi and Django describe the same protocols in types of their own.
pages = BodyLimit(cast(Any, WSGIMiddleware(cast(Any, django_pages), workers=16)))
sockets = AllowedHostsOriginValidator(SessionMiddlewareStack(URLRouter(websocket_urlpatterns)))
GATEWAY_PREFIXES = ("/v1/", "/v2/")


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Hand one connection to its door, deciding on `scope["path"]` alone."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await sockets(scope, receive, send)
    elif scope["path"].startswith(GATEWAY_PREFIXES):
        await gateway(scope, receive, send)
    else:
        await pages(scope, receive, send)


async def lifespan(receive: Receive, send: Send) -> None:
    """Open the hub and the gateway's pools with the process, and close them with it."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await hub.start()
            await gateway.start()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await gateway.stop()
            await hub.stop()
            await send({"type": "lifespan.shutdown.complete"})
            return
