"""Hears what `common.loops.wake` rings, on a connection of its own; the thread sleeps in the kernel meanwhile."""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable

import psycopg
from django.db import connection
from psycopg import sql

from common.loops import CHANNEL

LIBPQ_WORDS = ("host", "port", "user", "password", "dbname", "sslmode", "sslrootcert")
# How late a wish to stop may be heard.
STOP_WITHIN_S = 1.0


def hear(on_word: Callable[[str], None], stopping: threading.Event) -> None:
    """Call `on_word` with each word that is rung, until stopped.

    Raises:
        psycopg.Error: when it is cut off; what is rung until somebody listens again is not heard.
    """
    known = connection.get_connection_params()
    parameters = {name: known[name] for name in LIBPQ_WORDS if name in known}
    with psycopg.connect(**parameters, autocommit=True) as listener, selectors.DefaultSelector() as selector:
        listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
        # psycopg's own wait looks at its socket ten times a second.
        selector.register(listener.fileno(), selectors.EVENT_READ)
        while not stopping.is_set():
            for notice in listener.notifies(timeout=0):
                on_word(notice.payload)
            selector.select(STOP_WITHIN_S)
