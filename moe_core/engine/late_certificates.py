"""Certificates that nobody asked for yet, read at the first handshake.

aiohttp makes two TLS contexts when it is imported, and each reads the system's certificates, some hundred, for a client
that connects by TLS. An engine answers on a unix socket and connects to nobody. Imports the standard library alone.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# One for all: contexts are few, and each is read once.
_lock = threading.Lock()


class LateContext(ssl.SSLContext):
    """A TLS context whose certificates are read when a connection is wrapped, or somebody asks for them."""

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """As `ssl.SSLContext` does, with its certificates read."""
        _read(self)
        return ssl.SSLContext.wrap_bio(self, *args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As `ssl.SSLContext` does, with its certificates read."""
        _read(self)
        return ssl.SSLContext.wrap_socket(self, *args, **options)

    def get_ca_certs(self, *args: Any, **options: Any) -> Any:
        """As `ssl.SSLContext` does, with its certificates read."""
        _read(self)
        return ssl.SSLContext.get_ca_certs(self, *args, **options)

    def cert_store_stats(self) -> dict[str, int]:
        """As `ssl.SSLContext` does, with its certificates read."""
        _read(self)
        return ssl.SSLContext.cert_store_stats(self)


@contextmanager
def put_off() -> Iterator[None]:
    """Contexts that are told within the block to read the system's certificates read them late."""

    def later(context: ssl.SSLContext) -> None:
        # A context of another class may have ways of its own to its certificates.
        if type(context) is ssl.SSLContext:
            context.__class__ = LateContext
        else:
            _read_now(context)

    ssl.SSLContext.set_default_verify_paths = later  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        # What is found now is its parent's, written in C.
        del ssl.SSLContext.set_default_verify_paths


def _read(context: ssl.SSLContext) -> None:
    with _lock:
        if type(context) is LateContext:
            _read_now(context)
            context.__class__ = ssl.SSLContext  # type: ignore[assignment]


def _read_now(context: ssl.SSLContext) -> None:
    super(ssl.SSLContext, context).set_default_verify_paths()
