"""A small REST client (standard library only): bearer token, problem+json as errors, waiting on jobs."""

from __future__ import annotations

import http.client
import json
import mimetypes
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "quarantined"})
POLL_S = 0.5


class ApiError(Exception):
    """The API refused; `status` and the problem's sentence say why."""

    def __init__(self, method: str, path: str, status: int, detail: str) -> None:
        super().__init__(f"{method} {path} answered {status}: {detail}")
        self.status = status


@dataclass(slots=True)
class Api:
    """One installation as one token sees it."""

    address: str
    token: str
    timeout_s: float = 60.0

    def connect(self) -> http.client.HTTPConnection:
        """Open one connection."""
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "127.0.0.1", parts.port, timeout=self.timeout_s)

    def headers(self, **more: str) -> dict[str, str]:
        """Return the headers of every call."""
        return {"Authorization": f"Bearer {self.token}", "Accept": "application/json", **more}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make one call with a JSON body; creating POSTs carry an Idempotency-Key."""
        raw = None if body is None else json.dumps(body).encode()
        headers = self.headers(**{"Content-Type": "application/json"} if raw else {})
        if method == "POST" and path.startswith("/api/"):
            headers["Idempotency-Key"] = secrets.token_hex(16)
        return self._answer(method, path, raw, headers)

    def get(self, path: str) -> Any:
        """Read."""
        return self.call("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """Create or act."""
        return self.call("POST", path, body if body is not None else {})

    def upload(self, path: str, file: Path, fields: dict[str, str]) -> Any:
        """Send one file as multipart/form-data."""
        boundary = secrets.token_hex(16)
        raw = b"".join(_multipart(boundary, file, fields))
        return self._answer(
            "POST", path, raw, self.headers(**{"Content-Type": f"multipart/form-data; boundary={boundary}"})
        )

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Read an SSE stream of JSON events until `[DONE]`."""
        connection = self.connect()
        try:
            connection.request(
                "POST", path, json.dumps(body).encode(), self.headers(**{"Content-Type": "application/json"})
            )
            reply = connection.getresponse()
            if reply.status != 200:
                raise ApiError("POST", path, reply.status, _detail(reply.read()))
            for line in reply:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def wait(self, job_id: int, on_change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Follow a job to its end; raise for one that did not succeed."""
        while True:
            job: dict[str, Any] = self.get(f"/api/v1/jobs/{job_id}/")
            on_change(job)
            if job["state"] in TERMINAL:
                break
            time.sleep(POLL_S)
        if job["state"] != "succeeded":
            raise ApiError(
                "GET", f"/api/v1/jobs/{job_id}/", 200, f"the job is {job['state']}: {job.get('error') or '—'}"
            )
        return job

    def _answer(self, method: str, path: str, raw: bytes | None, headers: dict[str, str]) -> Any:
        connection = self.connect()
        try:
            connection.request(method, path, raw, headers)
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        if reply.status >= 400:
            raise ApiError(method, path, reply.status, _detail(data))
        return json.loads(data) if data else None


def _detail(data: bytes) -> str:
    """Return the sentence of a problem, or the beginning of whatever came."""
    try:
        problem = json.loads(data)
    except ValueError:
        return data[:200].decode(errors="replace")
    if "error" in problem and isinstance(problem["error"], dict):
        return str(problem["error"].get("message"))
    fields = "; ".join(f"{item['field']}: {item['message']}" for item in problem.get("errors", []))
    return " ".join(filter(None, [str(problem.get("detail", problem)), fields]))


def _multipart(boundary: str, file: Path, fields: dict[str, str]) -> Iterator[bytes]:
    """Yield the parts of a form with one file."""
    for name, value in fields.items():
        yield f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    yield (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n"
    ).encode()
    yield file.read_bytes()
    yield f"\r\n--{boundary}--\r\n".encode()
