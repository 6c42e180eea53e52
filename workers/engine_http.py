"""Plain HTTP to an engine's unix socket, for the agent's threads."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 64 << 20


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection through a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("engine", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def get_json(path: Path, address: str, timeout_s: float) -> dict[str, Any] | None:
    """Fetch a JSON object; None when nobody answers in time. The status is left to the object."""
    connection = UnixConnection(path, timeout_s)
    try:
        connection.request("GET", address)
        value = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return value if isinstance(value, dict) else None


class LineStream:
    """An endless NDJSON answer; `close` from another thread ends it."""

    def __init__(self, path: Path, address: str, timeout_s: float) -> None:
        self._connection = UnixConnection(path, timeout_s)
        try:
            self._connection.request("GET", address)
            self._response = self._connection.getresponse()
            if self._response.status != 200:
                raise http.client.HTTPException(f"status {self._response.status}")
        except BaseException:
            self._connection.close()
            raise

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while raw := self._response.readline(MAX_LINE_BYTES):
            yield json.loads(raw)

    def close(self) -> None:
        """Cut the connection; a reader in another thread wakes with an end or an error."""
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give the connection back; by the thread that reads."""
        self._response.close()
        self._connection.close()
