"""Asks the web process in this container for a page, as the reverse proxy would; exit status 0 when it is served."""

from __future__ import annotations

import http.client
import os
import sys

from standalone.paths import DEFAULT_PORT


def main() -> int:
    """Return 0 when the sign-in page is served."""
    host = (os.environ.get("TURNOUT_HOSTS") or "localhost").split(",")[0].strip()
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("PORT") or DEFAULT_PORT), timeout=5
    )
    try:
        connection.request("GET", "/signin/", headers={"Host": host, "X-Forwarded-Proto": "https"})
        return 0 if connection.getresponse().status == http.HTTPStatus.OK else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
