"""Where one installation keeps its things."""

from __future__ import annotations

import os
from pathlib import Path

from standalone.errors import StandaloneError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_PORT = 8000
PORTS = range(1, 1 << 16)


def data_dir() -> Path:
    """Return the data folder: TURNOUT_DATA_DIR, else ./var in the checkout."""
    return Path(os.environ.get("TURNOUT_DATA_DIR") or ROOT / "var").expanduser().resolve()


def port() -> int:
    """Return the web port: TURNOUT_PORT, else 8000."""
    return port_of(os.environ.get("TURNOUT_PORT") or str(DEFAULT_PORT), "TURNOUT_PORT")


def port_of(text: str, name: str = "--port") -> int:
    """Return a port that programs may listen on; `name` says where the text was given."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if number not in PORTS:
        raise StandaloneError(
            f"{name} is {text!r}, which is no port: give a whole number from {PORTS[0]} to {PORTS[-1]}, "
            f"such as {name}{' ' if name.startswith('-') else '='}{DEFAULT_PORT}."
        )
    return number
