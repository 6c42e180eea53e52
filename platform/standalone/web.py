"""The web process: one uvicorn with the flags that reliability asks for. `python -m standalone.web` in a container."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from standalone.paths import DEFAULT_PORT, ROOT

# A client that only waits must not be cut; one that floods must not fill memory; a stream may end before we do.
FLAGS = [
    "--ws", "websockets-sansio", "--ws-max-size", "65536", "--ws-max-queue", "16", "--timeout-keep-alive", "75",
    "--no-server-header", "--no-access-log", "--lifespan", "on",
]  # fmt: skip


def command(bind: str, port: int, drain_s: int) -> list[str]:
    """Return the command line of the web process."""
    listen = ["--host", bind, "--port", str(port), "--timeout-graceful-shutdown", str(drain_s)]
    return [sys.executable, "-m", "uvicorn", "config.asgi:application", *listen, *FLAGS]


def main() -> None:
    """Gather the static files of this image, then become the web process."""
    parser = argparse.ArgumentParser(prog="python -m standalone.web", description=main.__doc__)
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--drain", type=int, default=30, help="seconds that running streams get at the end")
    chosen = parser.parse_args()
    gather = [sys.executable, str(ROOT / "manage.py"), "collectstatic", "--noinput", "--verbosity", "0"]
    subprocess.run(gather, check=True)
    words = command(chosen.bind, chosen.port, chosen.drain)
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
