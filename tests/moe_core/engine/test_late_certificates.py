"""aiohttp's TLS contexts read the system's certificates at their first handshake, and verify as ever."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from moe_core.engine import late_certificates
from moe_core.engine.late_certificates import LateContext

SERVES = """
import ssl
read = []
from moe_core.engine import late_certificates, server
late_certificates._read_now = lambda context: read.append(context)
loop = server._loop_factory()
class Enough(Exception):
    pass
def enough(*_, **__):
    raise Enough
from types import SimpleNamespace
import asyncio, sys
sys.modules["moe_core.engine.service"] = SimpleNamespace(EngineService=enough)
try:
    asyncio.run(server.serve(None, None))
except Enough:
    pass
from aiohttp import connector
held = [connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED]
assert [type(one) for one in held] == [late_certificates.LateContext] * 2 and not read
assert held[0].verify_mode == ssl.CERT_REQUIRED and held[0].check_hostname
assert "set_default_verify_paths" not in vars(ssl.SSLContext)
"""
ASKS: dict[str, Callable[[ssl.SSLContext], Any]] = {
    "get_ca_certs": lambda one: one.get_ca_certs(),
    "cert_store_stats": lambda one: one.cert_store_stats(),
    "wrap_bio": lambda one: one.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="a.example"),
}


def late() -> ssl.SSLContext:
    with late_certificates.put_off():
        context = ssl.create_default_context()
    assert type(context) is LateContext
    return context


def test_an_engine_reads_no_certificates() -> None:
    done = subprocess.run([sys.executable, "-c", SERVES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("asked", ASKS)
def test_whoever_asks_finds_them(asked: str) -> None:
    context, plain = late(), ssl.create_default_context()
    ASKS[asked](context)
    assert type(context) is ssl.SSLContext
    assert context.cert_store_stats() == plain.cert_store_stats()
    assert context.get_ca_certs() == plain.get_ca_certs()
    assert (context.options, context.verify_mode) == (plain.options, plain.verify_mode)


def test_threads_that_ask_at_once_have_them_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    context = late()
    read: list[ssl.SSLContext] = []
    monkeypatch.setattr(late_certificates, "_read_now", read.append)
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait()
        context.cert_store_stats()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [context]


def test_outside_the_block_and_of_another_class_nothing_is_late() -> None:
    class Own(ssl.SSLContext):
        pass

    with late_certificates.put_off():
        own = Own(ssl.PROTOCOL_TLS_CLIENT)
        own.load_default_certs()
    assert type(own) is Own
    assert own.cert_store_stats() == ssl.create_default_context().cert_store_stats()
    assert type(ssl.create_default_context()) is ssl.SSLContext
